-- What all scripts share; it stands before each of them.
--
-- A script is one transition of the protocol: atomic, idempotent, on the server's clock, in milliseconds. Lua in Redis
-- has no rollback, so each reads all that it needs before its first write, and frees before it writes. KEYS[1] is the
-- namespace's prefix; all other keys are made from it (Redis Cluster is refused elsewhere).
local P = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local INLINE_FINISH_CHUNKS = 64
local RATE_SLOT_MS, RATE_SLOTS = 10000, 61
local HISTORY_ATTEMPTS, MEMORY_CHECK_MS = 20, 200
local function job_key(job) return P .. 'job:' .. job end
local function chunk_key(job, chunk) return P .. 'chunk:' .. job .. ':' .. chunk end
local function queue_key(queue, part) return P .. 'queue:' .. queue .. ':' .. part end
local function pending_key(job) return P .. 'pending:' .. job end
-- A full Redis refuses a script's writes unless the first one can only free: this one lets the others pass.
local function even_when_full() redis.call('DEL', P .. 'nothing') end
local function split(member) return string.match(member, '^([^/]+)/(.+)$') end
local function whole(number) return string.format('%.0f', number) end
-- What may be garbage is read with these: it is as if it were not there, and stops nobody else's work.
local function attempted(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then return nil end
  return reply
end
local function fields(key, ...) return attempted('HMGET', key, ...) or {} end
-- What all chunks of a queue share is written in the middle of transitions. So whatever moves a chunk asks first, and
-- garbage stops it before it begins.
local sound = {}
local function require_sound(queue)
  if sound[queue] then return end
  local function require_that(holds, key) if not holds then error('garbage in ' .. key .. '; delete that key') end end
  local function numbers(values)
    for _, value in ipairs(values or {}) do if not tonumber(value) then return nil end end
    return values
  end
  require_that(numbers(attempted('HVALS', queue_key(queue, 'images'))), queue_key(queue, 'images'))
  for part, command in pairs({rates = 'HLEN', grants = 'HLEN', queued = 'ZCARD', leased = 'ZCARD', parked = 'ZCARD',
    ring = 'ZCARD'}) do require_that(attempted(command, queue_key(queue, part)), queue_key(queue, part)) end
  for _, name in ipairs({'dead', 'blobs', 'finalise'}) do require_that(attempted('ZCARD', P .. name), P .. name) end
  for _, name in ipairs({'room', 'blob_bytes'}) do
    local value = attempted('GET', P .. name)
    require_that(value == false or tonumber(value), P .. name)
  end
  sound[queue] = true
end
-- A chunk with what its scripts need of it and of its job; nil if it is unknown or garbage.
local function load(job, chunk)
  local j = fields(job_key(job), 'queue', 'cancelled_at')
  local c = fields(chunk_key(job, chunk), 'state', 'n', 'attempt', 'deaths', 'queued_at', 'owner', 'grant')
  if not j[1] or not c[1] or not tonumber(c[2]) or not tonumber(c[3]) or not tonumber(c[4]) or not tonumber(c[5])
    or not attempted('ZCARD', pending_key(job)) then return nil end
  return {job = job, chunk = chunk, member = job .. '/' .. chunk, key = chunk_key(job, chunk), queue = j[1],
    cancelled = j[2], state = c[1], n = tonumber(c[2]), attempt = tonumber(c[3]), deaths = tonumber(c[4]),
    queued_at = c[5], owner = c[6], grant = c[7]}
end
local function held_by(c, owner, attempt)
  return c and c.state == 'leased' and c.owner == owner and c.attempt == tonumber(attempt)
end
-- The chunk that a call of `begin` was granted and that is still held under it.
local function granted(queue, grant)
  local job, chunk = split(redis.call('HGET', queue_key(queue, 'grants'), grant) or '')
  local c = job and load(job, chunk)
  return c and c.state == 'leased' and c.grant == grant and c or nil
end
local function notify(job)
  local reply = redis.call('HGET', job_key(job), 'reply_to')
  if reply then redis.call('PUBLISH', P .. 'reply:' .. reply, job) end
end
local function finish(job)
  local jk = job_key(job)
  local ttl = tonumber(redis.call('HGET', jk, 'ttl_seconds'))
  local state = redis.call('HGET', jk, 'state')
  if state ~= 'cancelled' and state ~= 'abandoned' then redis.call('HSET', jk, 'state', 'done') end
  redis.call('HSET', jk, 'finished_at', now)
  redis.call('ZREM', P .. 'finalise', job)
  redis.call('DEL', pending_key(job))
  redis.call('EXPIRE', jk, ttl)
  redis.call('EXPIRE', P .. 'parts:' .. job, ttl)
  redis.call('EXPIRE', P .. 'log:' .. job, ttl)
end
-- Ends a job whose last image is done: at once if that is little work, else by the finaliser. 1 if it is for that.
local function end_if_complete(job)
  local s = redis.call('HMGET', job_key(job),
    'state', 'accepted', 'done', 'sink', 'chunks', 'finished_at', 'ttl_seconds')
  if s[6] or s[1] == 'open' or s[2] ~= s[3] then return 0 end
  if s[4] or tonumber(s[5]) > INLINE_FINISH_CHUNKS then
    redis.call('ZADD', P .. 'finalise', now, job)
    return 1
  end
  for _, chunk in ipairs(redis.call('LRANGE', P .. 'log:' .. job, 0, -1)) do
    redis.call('EXPIRE', P .. 'records:' .. job .. ':' .. chunk, tonumber(s[7]))
  end
  finish(job)
  return 0
end
-- Images by what happened to them in the last ten minutes, in slots of ten seconds that are used in a ring.
local function tick(queue, what, n)
  local key, slot = queue_key(queue, 'rates'), whole(math.floor(now / RATE_SLOT_MS))
  local field = what .. ':' .. (tonumber(slot) % RATE_SLOTS)
  local before, images = string.match(redis.call('HGET', key, field) or '', '^(%d+) (%d+)$')
  redis.call('HSET', key, field, slot .. ' ' .. whole((before == slot and tonumber(images) or 0) + n))
end
local function count(queue, state, n) redis.call('HINCRBY', queue_key(queue, 'images'), state, n) end
-- The ring says whose turn it is. Interactive: jobs by time of entry. Bulk: jobs by images begun. A job that comes, or
-- comes again, starts one chunk behind the least served one, or where it left if that is further. Were it level with
-- that one, new jobs whose names sort first could keep it waiting for ever.
local function is_interactive(queue) return string.find(queue, '%.interactive$') end
local function join_ring(c)
  local ring = queue_key(c.queue, 'ring')
  if c.cancelled then return end
  if is_interactive(c.queue) then return redis.call('ZADD', ring, 'LT', c.queued_at, c.job) end
  if redis.call('ZSCORE', ring, c.job) then return end
  local least = redis.call('ZRANGE', ring, 0, 0, 'WITHSCORES')[2]
    or redis.call('HGET', queue_key(c.queue, 'images'), 'turn')
  local served = redis.call('HGET', job_key(c.job), 'served')
  redis.call('ZADD', ring, math.max(tonumber(least or 0) + c.n, tonumber(served or 0)), c.job)
end
local function leave_ring(queue, job)
  local served = redis.call('ZSCORE', queue_key(queue, 'ring'), job)
  if not served then return end
  redis.call('ZREM', queue_key(queue, 'ring'), job)
  if is_interactive(queue) then return end
  redis.call('HSET', job_key(job), 'served', served)
  redis.call('HSET', queue_key(queue, 'images'), 'turn', served)
end
local function serve(c)
  local ring = queue_key(c.queue, 'ring')
  if not is_interactive(c.queue) and redis.call('ZSCORE', ring, c.job) then redis.call('ZINCRBY', ring, c.n, c.job) end
end
local function enqueue(c)
  redis.call('ZADD', queue_key(c.queue, 'queued'), c.queued_at, c.member)
  redis.call('ZADD', pending_key(c.job), c.queued_at, c.chunk)
  redis.call('HINCRBY', job_key(c.job), 'queued', 1)
  count(c.queue, 'queued', c.n)
  join_ring(c)
end
local function dequeue(c)
  redis.call('ZREM', queue_key(c.queue, 'queued'), c.member)
  redis.call('ZREM', pending_key(c.job), c.chunk)
  redis.call('HINCRBY', job_key(c.job), 'queued', -1)
  count(c.queue, 'queued', -c.n)
  if redis.call('EXISTS', pending_key(c.job)) == 0 then leave_ring(c.queue, c.job) end
end
-- Out of whatever state it is in.
local function leave(c)
  if c.state == 'queued' then return dequeue(c) end
  redis.call('ZREM', queue_key(c.queue, c.state), c.member)
  count(c.queue, c.state, -c.n)
  if c.grant then redis.call('HDEL', queue_key(c.queue, 'grants'), c.grant) end
end
-- Into the queue it came from, at the place it had.
local function to_queue(c)
  leave(c)
  redis.call('HDEL', c.key, 'owner', 'grant', 'mark')
  redis.call('HSET', c.key, 'state', 'queued')
  enqueue(c)
end
-- What became of an attempt, for the dead letters.
local function remember(c, ended)
  if c.attempt > HISTORY_ATTEMPTS then return end
  local line = cjson.encode({attempt = c.attempt, worker = c.owner or '', ended = ended, at = now})
  redis.call('HSET', c.key, 'history', (redis.call('HGET', c.key, 'history') or '') .. line .. '\n')
end
-- The images that workers died alone with, once for each death.
local function lone_deaths(stored)
  local readable, images = pcall(cjson.decode, stored or '[]')
  return readable and type(images) == 'table' and images or {}
end
-- A death: if the worker was alone with one image, that speaks against the image.
local function bury(c)
  local held = redis.call('HMGET', c.key, 'mark', 'lone_deaths')
  if held[1] and held[1] ~= '' then
    local images = lone_deaths(held[2])
    images[#images + 1] = held[1]
    redis.call('HSET', c.key, 'lone_deaths', cjson.encode(images))
  end
  redis.call('HINCRBY', c.key, 'deaths', 1)
  remember(c, 'died')
end
-- Drops a dead letter, and the image that was kept for it and for no other letter. 0: there is none; 2: its image,
-- which lies elsewhere, is kept for nobody any more.
local function drop_letter(key)
  local body = attempted('HGET', P .. 'dead:' .. key, 'letter')
  redis.call('ZREM', P .. 'dead', key)
  redis.call('DEL', P .. 'dead:' .. key)
  if not body then return 0 end
  local readable, letter = pcall(cjson.decode, body)
  local item = readable and type(letter) == 'table' and type(letter.item) == 'table' and letter.item
  local store, sha = string.match(item and type(item.ref) == 'string' and item.ref or '', '^(%l+):(%x+)$')
  if not sha or type(letter.job) ~= 'string' or type(letter.chunk) ~= 'string' then return 1 end
  local name = letter.job .. ':' .. letter.chunk .. ':' .. sha
  local kept = P .. 'kept:' .. name
  if (tonumber(attempted('GET', kept) or nil) or 0) > 1 then
    redis.call('DECR', kept)
    return 1
  end
  redis.call('DEL', kept)
  if store ~= 'blob' then return 2 end
  local member = name .. ':' .. (attempted('STRLEN', P .. 'blob:' .. name) or 0)
  redis.call('DEL', P .. 'blob:' .. name)
  if redis.call('ZREM', P .. 'blobs', member) == 1 then
    redis.call('DECRBY', P .. 'blob_bytes', string.match(member, '(%d+)$'))
  end
  return 1
end
-- Whether so many bytes more leave too little room for the records of what has been accepted.
local function full(bytes, share)
  if tonumber(share) == 0 then return false end
  local used, most = string.match(redis.call('GET', P .. 'memory') or '', '^(%d+) (%d+)$')
  local fresh = not used
  if fresh then
    local info = redis.call('INFO', 'memory')
    used, most = string.match(info, 'used_memory:(%d+)'), string.match(info, 'maxmemory:(%d+)')
  end
  local room = tonumber(redis.call('GET', P .. 'room') or '0')
  if tonumber(most) > 0 and used + room + bytes > most * share then return true end
  if fresh then redis.call('SET', P .. 'memory', used .. ' ' .. most, 'PX', MEMORY_CHECK_MS) end
  return false
end
