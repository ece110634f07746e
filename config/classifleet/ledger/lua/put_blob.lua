-- 0: it is parked; 1: all parked images together would exceed the cap; 2: Redis is short of memory.
local job, chunk, sha, data, ttl_ms, cap, share = unpack(ARGV)
local name = job .. ':' .. chunk .. ':' .. sha
local key = P .. 'blob:' .. name
local member = name .. ':' .. #data
for _, old in ipairs(redis.call('ZRANGEBYSCORE', P .. 'blobs', '-inf', now, 'LIMIT', 0, 1000)) do
  redis.call('ZREM', P .. 'blobs', old)
  redis.call('DECRBY', P .. 'blob_bytes', tonumber(string.match(old, '(%d+)$')))
end
if not redis.call('ZSCORE', P .. 'blobs', member) then
  if tonumber(redis.call('GET', P .. 'blob_bytes') or '0') + #data > tonumber(cap) then return 1 end
  if full(#data, share) then return 2 end
  redis.call('INCRBY', P .. 'blob_bytes', #data)
end
redis.call('SET', key, data, 'PX', ttl_ms)
redis.call('ZADD', P .. 'blobs', now + tonumber(ttl_ms), member)
return 0
