-- A process of the fleet ends.
redis.call('HDEL', P .. 'about', ARGV[1])
return redis.call('ZREM', P .. 'workers', ARGV[1])
