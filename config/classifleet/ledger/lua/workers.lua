-- The processes that were heard of lately: what each is, and for how many milliseconds it has been silent.
local found = {}
local heard = redis.call('ZRANGEBYSCORE', P .. 'workers', now - tonumber(ARGV[1]), '+inf', 'WITHSCORES')
for i = 1, #heard, 2 do
  local about = redis.call('HGET', P .. 'about', heard[i])
  if about then found[#found + 1] = {about, now - tonumber(heard[i + 1])} end
end
return found
