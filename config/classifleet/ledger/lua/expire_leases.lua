-- Leases that ran out mean a death: back to the queue, one death more. Returns the chunks to publish again.
local queue, limit = unpack(ARGV)
local back = {}
-- If the worker was alone with one image, that image is convicted.
local function bury(c)
  local held = redis.call('HMGET', c.key, 'mark', 'convicted')
  if held[1] and held[1] ~= '' then
    local convicted = cjson.decode(held[2] or '[]')
    convicted[#convicted + 1] = held[1]
    redis.call('HSET', c.key, 'convicted', cjson.encode(convicted))
  end
  redis.call('HINCRBY', c.key, 'deaths', 1)
  remember(c, 'died')
end
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
