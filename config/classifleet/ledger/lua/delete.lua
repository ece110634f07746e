-- Deletes a page of a finished job's records, and with the last page the job. 1: all is gone; -1: the job runs.
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
