-- A duty's lease: taken if free, prolonged if mine.
local key = P .. 'lock:' .. ARGV[1]
local owner = redis.call('GET', key)
if owner and owner ~= ARGV[2] then return 0 end
even_when_full()
redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
return 1
