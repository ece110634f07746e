-- The message names a chunk, but it is a wake-up call: which chunk of the queue it becomes is decided here.
-- Interactive: the named one, so first come is first served. Bulk: the first of the job that has been served least, so
-- that a job of a hundred does not wait behind one of ten millions. If the named chunk needs nobody, another is taken.
-- A lease that ran out is not taken over here: `expire_leases` alone decides that a worker has died.
local PICK_TRIES = 32 -- jobs and broken entries that one call looks at
local job, chunk, owner, lease_ms, latest_json, queue, grant = unpack(ARGV)
local latest = cjson.decode(latest_json)
local function models_of(job)
  local readable, models = pcall(cjson.decode, fields(job_key(job), 'models')[1])
  return readable and type(models) == 'table' and models or nil
end
-- What is not a chunk leaves the queue, visibly.
local function put_aside(queue, job, chunk)
  if redis.call('ZREM', queue_key(queue, 'queued'), job .. '/' .. chunk) == 1 then
    redis.call('ZADD', queue_key(queue, 'parked'), now, job .. '/' .. chunk)
  end
  attempted('ZREM', pending_key(job), chunk)
end
-- Why the named chunk may not be begun; nil if it may.
local function refusal(c)
  if attempted('HEXISTS', P .. 'parts:' .. job, chunk) == 1 then return 'DONE' end
  if not c or not models_of(job) then
    put_aside(queue, job, chunk)
    return 'GONE'
  end
  if c.cancelled then -- the finaliser answers it; until then no message is missing for it
    redis.call('ZREM', queue_key(c.queue, 'queued'), c.member)
    return 'CANCELLED'
  end
  if c.state == 'parked' then return 'PARKED' end
  if c.state == 'leased' then return c.owner == owner and 'JOIN' or 'HELD' end
end
local function pick()
  for _ = 1, PICK_TRIES do
    local first = redis.call('ZRANGE', queue_key(queue, 'ring'), 0, 0)[1]
    if not first then return nil end
    local next = (attempted('ZRANGE', pending_key(first), 0, 0) or {})[1]
    local c = next and load(first, next)
    if not next or not models_of(first) or (c and (c.cancelled or c.queue ~= queue)) then
      redis.call('ZREM', queue_key(queue, 'ring'), first)
    elseif c and c.state == 'queued' then return c
    else put_aside(queue, first, next) end
  end
end
-- What `latest` is for a job: a version, or one of several with weights. The same for a job wherever it is asked.
local function version_of(job, name)
  local offer = latest[name]
  if type(offer) ~= 'table' then return offer end
  local left = 0
  for _, share in ipairs(offer) do left = left + share[2] end
  left = tonumber(string.sub(redis.sha1hex(job .. '/' .. name), 1, 8), 16) / 4294967296 * left
  for _, share in ipairs(offer) do
    left = left - share[2]
    if left < 0 then return share[1] end
  end
  return offer[#offer][1]
end
even_when_full()
if redis.call('EXISTS', P .. 'revoked:' .. grant) == 1 then return {'GONE'} end
local c = granted(queue, grant) -- this very call was answered before, and the answer lost
if c and not models_of(c.job) then c = nil end
if not c then
  c = load(job, chunk)
  local refused = refusal(c)
  if refused or not is_interactive(queue) then
    local other = pick()
    if other then c, refused = other, nil end
  end
  if refused then return {refused} end
  require_sound(c.queue)
  serve(c)
  dequeue(c)
  count(c.queue, 'leased', c.n)
  c.attempt = c.attempt + 1
  redis.call('HSET', c.key, 'state', 'leased', 'owner', owner, 'grant', grant, 'attempt', c.attempt)
  redis.call('HSET', queue_key(c.queue, 'grants'), grant, c.member)
  redis.call('HSETNX', job_key(c.job), 'started_at', now)
end
redis.call('ZADD', queue_key(c.queue, 'leased'), now + tonumber(lease_ms), c.member)
local models = models_of(c.job)
for i, name in ipairs(models) do
  if not string.find(name, '@', 1, true) then
    if latest[name] then redis.call('HSETNX', job_key(c.job), 'pin:' .. name, version_of(c.job, name)) end
    local version = redis.call('HGET', job_key(c.job), 'pin:' .. name)
    if version then models[i] = name .. '@' .. version end
  end
end
local held = redis.call('HMGET', c.key, 'payload', 'deadline_at', 'lone_deaths', 'digest', 'trace')
local left = tonumber(held[2]) and tonumber(held[2]) - now
return {(left and left <= 0) and 'EXPIRED' or 'RUN', c.job, c.chunk, held[1] or '', c.attempt, c.deaths,
  now - tonumber(c.queued_at), left and whole(left) or '', cjson.encode(models),
  held[3] and cjson.encode(lone_deaths(held[3])) or '[]',
  held[4] or '', held[5] or ''}
