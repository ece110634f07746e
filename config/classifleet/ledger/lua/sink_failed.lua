-- A sink did not take the records of a chunk, or, with an empty chunk, the manifest of a job. Returns for how many
-- milliseconds it has taken none of the chunk, or none of its whole job; while nobody tried for longer than the gap, that
-- is not known, and the time begins anew.
local job, chunk, gap_ms = unpack(ARGV)
local c = chunk ~= '' and load(job, chunk) or nil
if chunk ~= '' and not c or not attempted('HEXISTS', job_key(job), 'queue') then return 0 end
local longest = 0
even_when_full()
for _, key in ipairs(c and {job_key(job), c.key} or {job_key(job)}) do
  local since, tried = unpack(redis.call('HMGET', key, 'sink_failed_at', 'sink_tried_at'))
  if not since or now - tonumber(tried or 0) > tonumber(gap_ms) then since = now end
  redis.call('HSET', key, 'sink_failed_at', since, 'sink_tried_at', now)
  longest = math.max(longest, now - tonumber(since))
end
return longest
