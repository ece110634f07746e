-- Triples of job, chunk, attempt follow the owner, and whether what it worked with has died under them. Returns the
-- chunks that are queued again.
local owner, died, back = ARGV[1], ARGV[2] == '1', {}
even_when_full()
for i = 3, #ARGV, 3 do
  local c = load(ARGV[i], ARGV[i + 1])
  if held_by(c, owner, ARGV[i + 2]) then
    if died then bury(c) else remember(c, 'handed back') end
    to_queue(c)
    back[#back + 1] = c.member
  end
end
return back
