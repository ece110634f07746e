-- Before a suspect image is touched: if the process dies now, it was this one. 0: the lease is lost.
local job, chunk, owner, attempt, image = unpack(ARGV)
local c = load(job, chunk)
if not held_by(c, owner, attempt) then return 0 end
even_when_full()
if image == '' then redis.call('HDEL', c.key, 'mark') else redis.call('HSET', c.key, 'mark', image) end
return 1
