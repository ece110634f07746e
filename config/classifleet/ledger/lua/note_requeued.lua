-- Notes on a dead letter as which job it was tried again. 0: it has expired.
local key = P .. 'dead:' .. ARGV[1]
if redis.call('EXISTS', key) == 0 then return 0 end
redis.call('HSET', key, 'requeued_as', ARGV[2])
return 1
