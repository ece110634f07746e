-- Ends a job, if it has as many images done as the caller knew of. 0: it does not end now.
local j = fields(job_key(ARGV[1]), 'state', 'accepted', 'done', 'finished_at')
if not j[1] or j[4] or j[1] == 'open' then -- opened again: it comes back when it is complete
  redis.call('ZREM', P .. 'finalise', ARGV[1])
  return 0
end
if j[2] ~= j[3] or (ARGV[2] ~= '' and ARGV[2] ~= j[3]) then return 0 end
even_when_full()
finish(ARGV[1])
notify(ARGV[1])
return 1
