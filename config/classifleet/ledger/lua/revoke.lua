-- The answer of a `begin` never came, and nobody asks for it any more: what it was granted is handed back, and if it is
-- still on its way it is granted nothing. Returns the chunk that is queued again.
local queue, grant, keep_ms = unpack(ARGV)
even_when_full()
redis.call('SET', P .. 'revoked:' .. grant, 1, 'PX', keep_ms)
local c = granted(queue, grant)
if not c then return {} end
require_sound(c.queue)
to_queue(c)
remember(c, 'handed back')
return {c.member}
