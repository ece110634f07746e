-- Takes back the parked images of a chunk that was refused, or, those that were parked `idle` seconds ago, of a chunk
-- that no producer will put any more. Returns how many; 0 if the chunk is known after all: while it waits, its images
-- are kept for another `ttl_ms` once half of that is over.
local job, chunk, idle, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local function keep(name)
  local left = redis.call('PTTL', P .. 'blob:' .. name)
  if left < 0 or left > ttl_ms / 2 then return end
  even_when_full()
  redis.call('PEXPIRE', P .. 'blob:' .. name, ttl_ms)
  redis.call('ZADD', P .. 'blobs', 'XX', now + ttl_ms, name .. ':' .. redis.call('STRLEN', P .. 'blob:' .. name))
end
if redis.call('EXISTS', chunk_key(job, chunk)) == 1 then
  if ttl_ms > 0 then for i = 5, #ARGV do keep(job .. ':' .. chunk .. ':' .. ARGV[i]) end end
  return 0
end
if attempted('HEXISTS', P .. 'parts:' .. job, chunk) ~= 0 then return 0 end
if idle > 0 and fields(job_key(job), 'state')[1] == 'open' then return 0 end
local taken = 0
for i = 5, #ARGV do
  local name = job .. ':' .. chunk .. ':' .. ARGV[i]
  local key = P .. 'blob:' .. name
  if (redis.call('OBJECT', 'IDLETIME', key) or 0) >= idle then -- asked first: it counts from the last look at the key
    local member = name .. ':' .. redis.call('STRLEN', key)
    local ends = redis.call('ZSCORE', P .. 'blobs', member)
    -- An image that a commit kept for a dead letter ends at the same time as the letter; its job may be long gone.
    local kept = idle > 0 and ends and redis.call('ZCOUNT', P .. 'dead', ends, ends) > 0
    if ends and not kept then
      redis.call('DEL', key)
      redis.call('ZREM', P .. 'blobs', member)
      redis.call('DECRBY', P .. 'blob_bytes', string.match(member, '(%d+)$'))
      taken = taken + 1
    end
  end
end
return taken
