-- A process of the fleet says that it lives, and what it is. Who has been silent for too long is struck off.
local owner, about, silent_ms = unpack(ARGV)
even_when_full()
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', now - tonumber(silent_ms))) do
  redis.call('ZREM', P .. 'workers', gone)
  redis.call('HDEL', P .. 'about', gone)
end
redis.call('ZADD', P .. 'workers', now, owner)
redis.call('HSET', P .. 'about', owner, about)
return 1
