-- Pairs of job and chunk follow the queue. Returns those that are queued again; what is not parked leaves the list.
local queue, back = ARGV[1], {}
require_sound(queue)
for i = 2, #ARGV, 2 do
  local c = load(ARGV[i], ARGV[i + 1])
  if c and c.state == 'parked' then
    to_queue(c)
    back[#back + 1] = c.member
  else
    redis.call('ZREM', queue_key(queue, 'parked'), ARGV[i] .. '/' .. ARGV[i + 1])
  end
end
return back
