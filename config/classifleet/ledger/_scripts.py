"""The ledger's protocol in Lua. Each script is one transition, atomic and idempotent, on the server's clock.

Lua in Redis has no rollback, so every script reads all it needs before its first write, and frees before it
writes. KEYS[1] is the namespace's prefix; all other keys are made from it (Redis Cluster is refused elsewhere).
Times are milliseconds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

INLINE_FINISH_CHUNKS: Final = 64  # a larger job is finished by the finaliser, page by page

_PRELUDE: Final = f"""
local P = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local INLINE_FINISH_CHUNKS = {INLINE_FINISH_CHUNKS}
local function job_key(job) return P .. 'job:' .. job end
local function chunk_key(job, chunk) return P .. 'chunk:' .. job .. ':' .. chunk end
local function queue_key(queue, part) return P .. 'queue:' .. queue .. ':' .. part end
-- A full Redis refuses a script's writes unless the first one can only free: this one lets the others pass.
local function even_when_full() redis.call('DEL', P .. 'nothing') end
local function split(member) return string.match(member, '^([^/]+)/(.+)$') end
local function notify(job)
  local reply = redis.call('HGET', job_key(job), 'reply_to')
  if reply then redis.call('PUBLISH', P .. 'reply:' .. reply, job) end
end
local function finish(job)
  local jk = job_key(job)
  local ttl = tonumber(redis.call('HGET', jk, 'ttl_seconds'))
  if redis.call('HGET', jk, 'state') ~= 'cancelled' then redis.call('HSET', jk, 'state', 'done') end
  redis.call('HSET', jk, 'finished_at', now)
  redis.call('ZREM', P .. 'finalise', job)
  redis.call('DEL', P .. 'pending:' .. job)
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
-- Back to the queue it came from, at the place it had.
local function to_queue(job, chunk)
  local ck = chunk_key(job, chunk)
  local c = redis.call('HMGET', ck, 'n', 'queued_at')
  local queue = redis.call('HGET', job_key(job), 'queue')
  redis.call('ZREM', queue_key(queue, 'leased'), job .. '/' .. chunk)
  redis.call('HDEL', ck, 'owner')
  redis.call('HSET', ck, 'state', 'queued')
  redis.call('ZADD', queue_key(queue, 'queued'), c[2], job .. '/' .. chunk)
  redis.call('HINCRBY', job_key(job), 'queued', 1)
  redis.call('HINCRBY', queue_key(queue, 'images'), 'leased', -tonumber(c[1]))
  redis.call('HINCRBY', queue_key(queue, 'images'), 'queued', tonumber(c[1]))
end
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name by which Redis caches it."""

    name: str
    source: str
    sha1: str


def _script(name: str, body: str) -> Script:
    source = _PRELUDE + body
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


# header_json is '' when the job must exist already; chunk is '' when only the job is opened or sealed.
PUT: Final = _script(
    "put",
    """
local job, header, request, chunk, n, payload, digest, deadline_ms, window, seal = unpack(ARGV)
local jk = job_key(job)
local known = redis.call('HMGET', jk, 'digest', 'state', 'queued', 'queue')
local fields = header ~= '' and cjson.decode(header) or {}
if not known[1] and header == '' then return {'UNKNOWN'} end
if known[1] and known[1] ~= request then return {'CONFLICT'} end
local state = known[2] or 'open'
local ck, outcome = nil, 'SEALED'
if chunk ~= '' then
  ck = chunk_key(job, chunk)
  local part = redis.call('HGET', P .. 'parts:' .. job, chunk)
  local c = redis.call('HMGET', ck, 'digest', 'state')
  local before = part and string.sub(part, 1, 16) or c[1]
  if before then
    if before ~= digest then return {'CONFLICT'} end
    outcome = part and 'DONE' or string.upper(c[2])
  elseif state == 'cancelled' then return {'CANCELLED'}
  elseif state ~= 'open' then return {'CONFLICT'}
  elseif tonumber(known[3] or '0') >= tonumber(window) then return {'WINDOW'}
  else outcome = 'NEW' end
end
if not known[1] then
  redis.call('HSET', jk, 'v', 1, 'digest', request, 'state', 'open', 'created_at', now, 'accepted', 0,
    'chunks', 0, 'queued', 0, 'done', 0, 'ok', 0, 'partial', 0, 'failed', 0)
  redis.call('ZADD', P .. 'jobs', now, job)
  redis.call('SADD', P .. 'queues', fields['queue'])
end
for field, value in pairs(fields) do
  if not known[1] or field == 'reply_to' then redis.call('HSET', jk, field, value) end
end
redis.call('HSET', jk, 'last_seen', now)
if outcome == 'NEW' then
  local queue = known[4] or fields['queue']
  redis.call('HSET', ck, 'payload', payload, 'digest', digest, 'n', n, 'state', 'queued', 'attempt', 0,
    'deaths', 0, 'queued_at', now)
  if deadline_ms ~= '' then redis.call('HSET', ck, 'deadline_at', now + tonumber(deadline_ms)) end
  redis.call('ZADD', queue_key(queue, 'queued'), now, job .. '/' .. chunk)
  redis.call('ZADD', P .. 'pending:' .. job, now, chunk)
  redis.call('HINCRBY', jk, 'accepted', n)
  redis.call('HINCRBY', jk, 'chunks', 1)
  redis.call('HINCRBY', jk, 'queued', 1)
  redis.call('HINCRBY', queue_key(queue, 'images'), 'queued', n)
  outcome = 'QUEUED'
end
if seal == '1' and state == 'open' then
  redis.call('HSET', jk, 'state', 'sealed', 'sealed_at', now)
  end_if_complete(job)
end
return {outcome}
""",
)

PUT_BLOB: Final = _script(
    "put_blob",
    """
local job, chunk, sha, data, ttl_ms, cap = unpack(ARGV)
local name = job .. ':' .. chunk .. ':' .. sha
local key = P .. 'blob:' .. name
local member = name .. ':' .. #data
for _, old in ipairs(redis.call('ZRANGEBYSCORE', P .. 'blobs', '-inf', now, 'LIMIT', 0, 1000)) do
  redis.call('ZREM', P .. 'blobs', old)
  redis.call('DECRBY', P .. 'blob_bytes', tonumber(string.match(old, '(%d+)$')))
end
if not redis.call('ZSCORE', P .. 'blobs', member) then
  if tonumber(redis.call('GET', P .. 'blob_bytes') or '0') + #data > tonumber(cap) then return 0 end
  redis.call('INCRBY', P .. 'blob_bytes', #data)
end
redis.call('SET', key, data, 'PX', ttl_ms)
redis.call('ZADD', P .. 'blobs', now + tonumber(ttl_ms), member)
return 1
""",
)

BEGIN: Final = _script(
    "begin",
    """
local job, chunk, owner, lease_ms, latest_json = unpack(ARGV)
local jk, ck, member = job_key(job), chunk_key(job, chunk), job .. '/' .. chunk
local j = redis.call('HMGET', jk, 'queue', 'models', 'cancelled_at')
if not j[1] then return {'GONE'} end
if redis.call('HEXISTS', P .. 'parts:' .. job, chunk) == 1 then return {'DONE'} end
local c = redis.call('HMGET', ck, 'payload', 'n', 'state', 'attempt', 'deaths', 'queued_at', 'deadline_at', 'owner')
if not c[1] then return {'GONE'} end
if j[3] then return {'CANCELLED'} end
local deaths, latest, models = tonumber(c[5]), cjson.decode(latest_json), cjson.decode(j[2])
if c[3] == 'leased' then
  local ends = redis.call('ZSCORE', queue_key(j[1], 'leased'), member)
  if ends and tonumber(ends) > now then return {c[8] == owner and 'JOIN' or 'HELD'} end
  deaths = deaths + 1
  even_when_full()
else
  redis.call('ZREM', queue_key(j[1], 'queued'), member)
  redis.call('HINCRBY', jk, 'queued', -1)
  redis.call('HINCRBY', queue_key(j[1], 'images'), 'queued', -tonumber(c[2]))
  redis.call('HINCRBY', queue_key(j[1], 'images'), 'leased', tonumber(c[2]))
end
local attempt = tonumber(c[4]) + 1
redis.call('HSET', ck, 'state', 'leased', 'owner', owner, 'attempt', attempt, 'deaths', deaths)
redis.call('ZADD', queue_key(j[1], 'leased'), now + tonumber(lease_ms), member)
redis.call('HSETNX', jk, 'started_at', now)
for i, name in ipairs(models) do
  if not string.find(name, '@', 1, true) then
    if latest[name] then redis.call('HSETNX', jk, 'pin:' .. name, latest[name]) end
    local version = redis.call('HGET', jk, 'pin:' .. name)
    if version then models[i] = name .. '@' .. version end
  end
end
local left = c[7] and tonumber(c[7]) - now or false
return {(left and left <= 0) and 'EXPIRED' or 'RUN', c[1], attempt, deaths, now - tonumber(c[6]),
  left and tostring(left) or '', cjson.encode(models)}
""",
)

# Triples of job, chunk, attempt follow the first two arguments. Returns 1 for each lease that is still held.
RENEW: Final = _script(
    "renew",
    """
local kept = {}
even_when_full()
for i = 3, #ARGV, 3 do
  local c = redis.call('HMGET', chunk_key(ARGV[i], ARGV[i + 1]), 'owner', 'attempt')
  local queue = redis.call('HGET', job_key(ARGV[i]), 'queue')
  local held = queue and c[1] == ARGV[1] and c[2] == ARGV[i + 2]
  if held then
    redis.call('ZADD', queue_key(queue, 'leased'), 'XX', now + tonumber(ARGV[2]), ARGV[i] .. '/' .. ARGV[i + 1])
  end
  kept[#kept + 1] = held and 1 or 0
end
return kept
""",
)

# Pairs of image id and record follow the first eight arguments (none for a job with a sink: `part` names its part).
COMMIT: Final = _script(
    "commit",
    """
local job, chunk, attempt, ok, partial, failed, codes_json, part = unpack(ARGV, 1, 8)
local jk, ck, member = job_key(job), chunk_key(job, chunk), job .. '/' .. chunk
local queue = redis.call('HGET', jk, 'queue')
if not queue then return {'GONE', 0} end
local won = redis.call('HGET', P .. 'parts:' .. job, chunk)
if won then return {string.match(won, '^%x+ (%d+) ') == attempt and 'REPEATED' or 'LATE', 0} end
local c = redis.call('HMGET', ck, 'n', 'state', 'digest', 'payload')
if not c[3] then return {'GONE', 0} end
local codes = cjson.decode(codes_json)
for sha in string.gmatch(c[4], '"blob:(%x+)"') do
  local name = job .. ':' .. chunk .. ':' .. sha
  local size = redis.call('STRLEN', P .. 'blob:' .. name)
  redis.call('DEL', P .. 'blob:' .. name)
  if redis.call('ZREM', P .. 'blobs', name .. ':' .. size) == 1 then redis.call('DECRBY', P .. 'blob_bytes', size) end
end
redis.call('DEL', ck)
redis.call('ZREM', P .. 'pending:' .. job, chunk)
redis.call('ZREM', queue_key(queue, c[2]), member)
if c[2] == 'queued' then redis.call('HINCRBY', jk, 'queued', -1) end
redis.call('HINCRBY', queue_key(queue, 'images'), c[2], -tonumber(c[1]))
redis.call('HINCRBY', queue_key(queue, 'images'), 'done', tonumber(c[1]))
redis.call('ZREMRANGEBYSCORE', queue_key(queue, 'done'), '-inf', now - 3600000)
redis.call('ZADD', queue_key(queue, 'done'), now, member)
redis.call('HSET', P .. 'parts:' .. job, chunk,
  c[3] .. ' ' .. attempt .. ' ' .. ok .. ' ' .. partial .. ' ' .. failed .. ' ' .. part)
redis.call('RPUSH', P .. 'log:' .. job, chunk)
redis.call('HINCRBY', jk, 'done', tonumber(c[1]))
redis.call('HINCRBY', jk, 'ok', tonumber(ok))
redis.call('HINCRBY', jk, 'partial', tonumber(partial))
redis.call('HINCRBY', jk, 'failed', tonumber(failed))
for code, count in pairs(codes) do redis.call('HINCRBY', jk, 'code:' .. code, count) end
for i = 9, #ARGV, 2 do redis.call('HSET', P .. 'records:' .. job .. ':' .. chunk, ARGV[i], ARGV[i + 1]) end
local last = end_if_complete(job)
notify(job)
return {'COMMITTED', last}
""",
)

# Triples of job, chunk, attempt follow the first argument. Returns the chunks that are queued again.
HAND_BACK: Final = _script(
    "hand_back",
    """
local back = {}
for i = 2, #ARGV, 3 do
  local c = redis.call('HMGET', chunk_key(ARGV[i], ARGV[i + 1]), 'owner', 'attempt', 'state')
  if c[1] == ARGV[1] and c[2] == ARGV[i + 2] and c[3] == 'leased' then
    to_queue(ARGV[i], ARGV[i + 1])
    back[#back + 1] = ARGV[i] .. '/' .. ARGV[i + 1]
  end
end
return back
""",
)

# Leases that ran out mean a death: back to the queue, one death more. Returns the chunks to publish again.
EXPIRE_LEASES: Final = _script(
    "expire_leases",
    """
local queue, limit = unpack(ARGV)
local back = {}
even_when_full()
for _, member in ipairs(redis.call('ZRANGEBYSCORE', queue_key(queue, 'leased'), '-inf', now, 'LIMIT', 0, limit)) do
  local job, chunk = split(member)
  if job and redis.call('HGET', chunk_key(job, chunk), 'state') == 'leased' then
    redis.call('HINCRBY', chunk_key(job, chunk), 'deaths', 1)
    to_queue(job, chunk)
    back[#back + 1] = member
  else
    redis.call('ZREM', queue_key(queue, 'leased'), member)
  end
end
return back
""",
)

CANCEL: Final = _script(
    "cancel",
    """
local jk = job_key(ARGV[1])
local j = redis.call('HMGET', jk, 'state', 'finished_at')
if not j[1] then return 'UNKNOWN' end
if j[2] then return 'FINISHED' end
redis.call('HSET', jk, 'state', 'cancelled', 'cancelled_at', now)
redis.call('ZADD', P .. 'finalise', now, ARGV[1])
return 'CANCELLED'
""",
)

FINISH: Final = _script(
    "finish",
    """
local j = redis.call('HMGET', job_key(ARGV[1]), 'state', 'accepted', 'done', 'finished_at')
if not j[1] or j[4] then
  redis.call('ZREM', P .. 'finalise', ARGV[1])
  return 0
end
if j[1] == 'open' or j[2] ~= j[3] then return 0 end
even_when_full()
finish(ARGV[1])
notify(ARGV[1])
return 1
""",
)

# Deletes a page of a finished job's records, and with the last page the job. 1: all is gone; -1: the job runs.
DELETE: Final = _script(
    "delete",
    """
local job, page = ARGV[1], tonumber(ARGV[2])
local j = redis.call('HMGET', job_key(job), 'state', 'finished_at')
if not j[1] then return 1 end
if not j[2] then return -1 end
for _, chunk in ipairs(redis.call('LPOP', P .. 'log:' .. job, page) or {}) do
  redis.call('DEL', P .. 'records:' .. job .. ':' .. chunk)
end
if redis.call('EXISTS', P .. 'log:' .. job) == 1 then return 0 end
redis.call('DEL', P .. 'parts:' .. job, P .. 'pending:' .. job, job_key(job))
redis.call('ZREM', P .. 'jobs', job)
return 1
""",
)

# A duty's lease: taken if free, prolonged if mine.
HOLD: Final = _script(
    "hold",
    """
local key = P .. 'lock:' .. ARGV[1]
local owner = redis.call('GET', key)
if owner and owner ~= ARGV[2] then return 0 end
even_when_full()
redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
return 1
""",
)

ALL: Final = (PUT, PUT_BLOB, BEGIN, RENEW, COMMIT, HAND_BACK, EXPIRE_LEASES, CANCEL, FINISH, DELETE, HOLD)
