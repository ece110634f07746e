-- Triples of job, chunk, attempt follow the owner, and whether what it worked with has died under them. Returns the
-- chunks that are queued again.
local owner, died, back, broken = ARGV[1], ARGV[2] == '1', {}, nil
even_when_full()
for i = 3, #ARGV, 3 do
  local c = load(ARGV[i], ARGV[i + 1])
  if held_by(c, owner, ARGV[i + 2]) then
    local is_sound, garbage = pcall(require_sound, c.queue)
    if is_sound then
      if died then bury(c) else remember(c, 'handed back') end
      to_queue(c)
      back[#back + 1] = c.member
    else broken = garbage end -- one queue's; the chunks of others go back all the same
  end
end
if broken then error(broken) end
return back
