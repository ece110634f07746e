-- A chunk failed as a whole, and its worker lives. Returns how often it has; 0: the lease is lost.
local job, chunk, owner, attempt = unpack(ARGV)
local c = load(job, chunk)
if not held_by(c, owner, attempt) then return 0 end
even_when_full()
return redis.call('HINCRBY', c.key, 'failures', 1)
