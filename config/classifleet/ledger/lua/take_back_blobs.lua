-- Takes back the parked images of a chunk that was refused. 0: the chunk is known after all, and they stay.
local job, chunk = ARGV[1], ARGV[2]
if redis.call('EXISTS', chunk_key(job, chunk)) == 1 then return 0 end
if redis.call('HEXISTS', P .. 'parts:' .. job, chunk) == 1 then return 0 end
for i = 3, #ARGV do
  local name = job .. ':' .. chunk .. ':' .. ARGV[i]
  local member = name .. ':' .. redis.call('STRLEN', P .. 'blob:' .. name)
  redis.call('DEL', P .. 'blob:' .. name)
  if redis.call('ZREM', P .. 'blobs', member) == 1 then
    redis.call('DECRBY', P .. 'blob_bytes', string.match(member, '(%d+)$'))
  end
end
return 1
