local jk = job_key(ARGV[1])
local j = redis.call('HMGET', jk, 'state', 'finished_at', 'queue')
if not j[1] then return 'UNKNOWN' end
if j[2] then return 'FINISHED' end
redis.call('ZREM', P .. 'open', ARGV[1])
leave_ring(j[3], ARGV[1])
redis.call('HSET', jk, 'state', 'cancelled')
redis.call('HSETNX', jk, 'cancelled_at', now)
redis.call('ZADD', P .. 'finalise', now, ARGV[1])
return 'CANCELLED'
