-- header_json is '' when the job must exist already. chunk is '' when only the job is opened, or sealed: if Redis still
-- has the chunks that its producer `expects` ('': it does not know).
local job, header, request, chunk, n, payload, digest, deadline_ms, window, seal, limit, room, share,
  trace, expects = unpack(ARGV)
local jk = job_key(job)
local known = redis.call('HMGET', jk, 'digest', 'state', 'queued', 'queue', 'finished_at', 'chunks')
local given = header ~= '' and cjson.decode(header) or {}
redis.call('ZCARD', pending_key(job)) -- fails here, and not half way, if it is garbage
if not known[1] and header == '' then return {'UNKNOWN'} end
if known[1] and known[1] ~= request then return {'CONFLICT'} end
local state = known[2] or 'open'
-- One that is complete and waits for its finaliser has ended, too: its manifest may be half written.
local over = known[5] or (state == 'abandoned' and redis.call('ZSCORE', P .. 'finalise', job))
local queue = known[4] or given['queue']
-- It stays open, so that the same submission again completes it.
if chunk == '' and seal == '1' and state ~= 'cancelled' and tonumber(known[6] or 0) < (tonumber(expects) or 0) then
  return {'INCOMPLETE'}
end
local ck, outcome = nil, 'SEALED'
-- A producer that has to wait is not silent.
local function wait(...)
  if known[1] then
    even_when_full()
    redis.call('HSET', jk, 'last_seen', now)
    redis.call('ZADD', P .. 'open', 'XX', now, job)
  end
  return {...}
end
if chunk ~= '' then
  ck = chunk_key(job, chunk)
  local part = redis.call('HGET', P .. 'parts:' .. job, chunk)
  local c = redis.call('HMGET', ck, 'digest', 'state')
  local before = part and string.sub(part, 1, 16) or c[1]
  if before then
    if before ~= digest then return {'CONFLICT'} end
    outcome = part and 'DONE' or string.upper(c[2])
  elseif state == 'cancelled' then return {'CANCELLED'}
  elseif state == 'abandoned' and over then return {'ABANDONED'}
  elseif state ~= 'open' and state ~= 'abandoned' then return {'CONFLICT'}
  elseif tonumber(known[3] or '0') >= tonumber(window) then return wait('WINDOW')
  else
    local images = tonumber(redis.call('HGET', queue_key(queue, 'images'), 'queued') or '0')
    if tonumber(limit) > 0 and images + n > tonumber(limit) then
      return wait('FULL', 'queue', whole(images), queue)
    end
    if full(#payload + room, share) then return wait('FULL', 'memory', whole(images), queue) end
    require_sound(queue)
    outcome = 'NEW'
  end
end
if known[1] and outcome ~= 'NEW' then even_when_full() end
if not known[1] then
  redis.call('HSET', jk, 'v', 1, 'digest', request, 'state', 'open', 'created_at', now, 'accepted', 0,
    'chunks', 0, 'queued', 0, 'done', 0, 'ok', 0, 'partial', 0, 'failed', 0)
  redis.call('ZADD', P .. 'jobs', now, job)
  redis.call('SADD', P .. 'queues', queue)
end
for field, value in pairs(given) do
  if not known[1] or field == 'reply_to' then redis.call('HSET', jk, field, value) end
end
redis.call('HSET', jk, 'last_seen', now)
if state == 'abandoned' and not over then
  redis.call('HSET', jk, 'state', 'open')
  state = 'open'
end
if outcome == 'NEW' then
  redis.call('HSET', ck, 'payload', payload, 'digest', digest, 'n', n, 'state', 'queued', 'attempt', 0,
    'deaths', 0, 'queued_at', now, 'room', room)
  if deadline_ms ~= '' then redis.call('HSET', ck, 'deadline_at', now + tonumber(deadline_ms)) end
  if trace ~= '' then redis.call('HSET', ck, 'trace', trace) end
  enqueue({job = job, chunk = chunk, member = job .. '/' .. chunk, queue = queue, n = tonumber(n), queued_at = now})
  redis.call('HINCRBY', jk, 'accepted', n)
  redis.call('HINCRBY', jk, 'chunks', 1)
  redis.call('INCRBY', P .. 'room', room)
  tick(queue, 'accepted', n)
  outcome = 'QUEUED'
end
if seal == '1' and state == 'open' then
  redis.call('HSET', jk, 'state', 'sealed', 'sealed_at', now)
  redis.call('ZREM', P .. 'open', job)
  end_if_complete(job)
elseif state == 'open' then redis.call('ZADD', P .. 'open', now, job) end
return {outcome}
