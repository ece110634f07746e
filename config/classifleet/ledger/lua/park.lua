-- The holder does not understand its chunk: it waits for a worker that does, or for its deadline.
local job, chunk, owner, attempt = unpack(ARGV)
local c = load(job, chunk)
if not held_by(c, owner, attempt) then return 0 end
require_sound(c.queue)
leave(c)
redis.call('HDEL', c.key, 'owner', 'grant', 'mark')
redis.call('HSET', c.key, 'state', 'parked')
remember(c, 'parked')
redis.call('ZADD', queue_key(c.queue, 'parked'), now, c.member)
count(c.queue, 'parked', c.n)
return 1
