-- Triples of job, chunk, attempt follow the first two arguments. Returns 1 for each lease that is still held.
local kept = {}
even_when_full()
for i = 3, #ARGV, 3 do
  local c = load(ARGV[i], ARGV[i + 1])
  local held = held_by(c, ARGV[1], ARGV[i + 2])
  if held then redis.call('ZADD', queue_key(c.queue, 'leased'), now + tonumber(ARGV[2]), c.member) end
  kept[#kept + 1] = held and 1 or 0
end
return kept
