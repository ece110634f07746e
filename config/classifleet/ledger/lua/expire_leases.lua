-- Leases that ran out mean a death: back to the queue, one death more. Returns the chunks to publish again.
local queue, limit = unpack(ARGV)
local back = {}
require_sound(queue)
even_when_full()
for _, member in ipairs(redis.call('ZRANGEBYSCORE', queue_key(queue, 'leased'), '-inf', now, 'LIMIT', 0, limit)) do
  local job, chunk = split(member)
  local c = job and load(job, chunk)
  if c and c.state == 'leased' and c.queue == queue then
    bury(c)
    to_queue(c)
    back[#back + 1] = member
  else
    redis.call('ZREM', queue_key(queue, 'leased'), member)
  end
end
return back
