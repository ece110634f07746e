-- Triples of job, chunk, attempt follow the first argument. Returns the chunks that are queued again.
local back = {}
for i = 2, #ARGV, 3 do
  local c = load(ARGV[i], ARGV[i + 1])
  if held_by(c, ARGV[1], ARGV[i + 2]) then
    to_queue(c)
    remember(c, 'handed back')
    back[#back + 1] = c.member
  end
end
return back
