-- Pairs of image id and record follow the first thirteen arguments (none for a job with a sink: `part` names its part).
-- Each dead letter keeps what is needed to try its image again, and its parked image.
local job, chunk, attempt, ok, partial, failed, codes_json, part = unpack(ARGV, 1, 8)
local dead_json, dead_ttl_ms, dead_most, digest, grant = unpack(ARGV, 9, 13)
local HSET_FIELDS = 128 -- at a time: Lua's stack is bounded
local jk, log_key, records_key = job_key(job), P .. 'log:' .. job, P .. 'records:' .. job .. ':' .. chunk
local won = attempted('HGET', P .. 'parts:' .. job, chunk)
-- A digest that is not the chunk's: the job was deleted and its id used again, and these records are of other images.
local function of_others(theirs) return digest ~= '' and theirs ~= digest end
if won then
  local images, won_at, won_by = string.match(won, '^(%x+) (%d+) (%S+) ')
  return {of_others(images) and 'GONE' or won_at == attempt and won_by == grant and 'REPEATED' or 'LATE', 0}
end
local c = load(job, chunk)
local writable = won == false and attempted('LLEN', log_key) and attempted('HLEN', records_key)
local held = fields(chunk_key(job, chunk), 'digest', 'payload', 'room', 'history')
if not c or not writable or not held[1] or of_others(held[1]) then return {'GONE', 0} end
require_sound(c.queue)
local codes, dead, keep = cjson.decode(codes_json), cjson.decode(dead_json), {}
for _, letter in ipairs(dead) do keep[letter.ref] = (keep[letter.ref] or 0) + 1 end
redis.call('DEL', c.key)
for sha in string.gmatch(held[2] or '', '"blob:(%x+)"') do
  local name = job .. ':' .. chunk .. ':' .. sha
  local member = name .. ':' .. (attempted('STRLEN', P .. 'blob:' .. name) or 0)
  if keep['blob:' .. sha] then
    redis.call('PEXPIRE', P .. 'blob:' .. name, dead_ttl_ms)
    redis.call('ZADD', P .. 'blobs', 'XX', now + tonumber(dead_ttl_ms), member)
  else
    redis.call('DEL', P .. 'blob:' .. name)
    if redis.call('ZREM', P .. 'blobs', member) == 1 then
      redis.call('DECRBY', P .. 'blob_bytes', string.match(member, '(%d+)$'))
    end
  end
end
for ref, letters in pairs(keep) do
  local sha = letters > 1 and string.match(ref, '^%l+:(%x+)$')
  if sha then redis.call('SET', P .. 'kept:' .. job .. ':' .. chunk .. ':' .. sha, letters, 'PX', dead_ttl_ms) end
end
leave(c)
count(c.queue, 'done', c.n)
tick(c.queue, 'done', c.n)
redis.call('DECRBY', P .. 'room', held[3] or 0)
for _, letter in ipairs(dead) do
  local key = P .. 'dead:' .. letter.key
  redis.call('HSET', key, 'letter', letter.body, 'history', held[4] or '', 'code', letter.code)
  redis.call('PEXPIRE', key, dead_ttl_ms)
  redis.call('ZADD', P .. 'dead', now + tonumber(dead_ttl_ms), letter.key)
end
if #dead > 0 then
  redis.call('ZREMRANGEBYSCORE', P .. 'dead', '-inf', now)
  for _, old in ipairs(redis.call('ZRANGE', P .. 'dead', 0, -1 - dead_most)) do drop_letter(old) end
end
redis.call('HSET', P .. 'parts:' .. job, chunk,
  held[1] .. ' ' .. attempt .. ' ' .. grant .. ' ' .. ok .. ' ' .. partial .. ' ' .. failed .. ' ' .. part)
if part ~= '' then redis.call('HDEL', jk, 'sink_failed_at', 'sink_tried_at') end
redis.call('RPUSH', log_key, chunk)
redis.call('HINCRBY', jk, 'done', c.n)
redis.call('HINCRBY', jk, 'ok', tonumber(ok))
redis.call('HINCRBY', jk, 'partial', tonumber(partial))
redis.call('HINCRBY', jk, 'failed', tonumber(failed))
for code, images in pairs(codes) do redis.call('HINCRBY', jk, 'code:' .. code, images) end
for i = 14, #ARGV, HSET_FIELDS do
  redis.call('HSET', records_key, unpack(ARGV, i, math.min(i + HSET_FIELDS - 1, #ARGV)))
end
local last = end_if_complete(job)
notify(job)
return {'COMMITTED', last}
