-- Gives up waiting for producers that have been silent: what they submitted is finished. Returns their jobs.
local ended = {}
local silent = redis.call('ZRANGEBYSCORE', P .. 'open', '-inf', now - tonumber(ARGV[1]), 'LIMIT', 0, ARGV[2])
for _, job in ipairs(silent) do
  redis.call('ZREM', P .. 'open', job)
  if fields(job_key(job), 'state')[1] == 'open' then
    redis.call('HSET', job_key(job), 'state', 'abandoned', 'sealed_at', now)
    end_if_complete(job)
    notify(job)
    ended[#ended + 1] = job
  end
end
return ended
