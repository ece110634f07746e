-- One turn of a worker: settle, keep, restore, reserve. Every part can be repeated, and none needs another.
--
-- KEYS  1 reserved (hash: tag -> queue, newline, message)   2 deadlines (zset: tag by ms of server time)
--       3 garbage (list)   then for each queue: its list, and the list of what woke a blocked worker
-- ARGV  prefix of queue keys, visibility in ms, nonce, garbage: messages and bytes of each, size of a message,
--       then lists, each after its length: acknowledged, handed back, parked, kept;
--       then chunks to restore at most, free slots, and for each queue: its name, its free slots
-- Answers {restored, oversized, messages left in each queue, {tag, number of its queue, message, ...}}
--
-- What removes comes before what adds: a Redis at maxmemory refuses a script only if its first write may grow.
-- A message is a string here and is never decoded: no message can make the script fail.
local reserved, deadlines, garbage = KEYS[1], KEYS[2], KEYS[3]
local at = 0

local function take()
  at = at + 1
  return ARGV[at]
end

local function each(act)
  for _ = 1, tonumber(take()) do
    act(take())
  end
end

local prefix, visibility, nonce = take(), tonumber(take()), take()
local garbage_kept, garbage_bytes, message_bytes = tonumber(take()), tonumber(take()), tonumber(take())
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function settle(tag)
  redis.call('ZREM', deadlines, tag)
  return redis.call('HDEL', reserved, tag)
end

local function park(message)
  redis.pcall('LPUSH', garbage, string.sub(message, 1, garbage_bytes))
  redis.pcall('LTRIM', garbage, 0, garbage_kept - 1)
end

local function remove(tag)
  local entry = redis.call('HGET', reserved, tag)
  settle(tag)
  if not entry then
    return nil
  end
  local cut = string.find(entry, '\n', 1, true) or 0
  return string.sub(entry, 1, cut - 1), string.sub(entry, cut + 1)
end

local function hand_back(tag)
  local queue, message = remove(tag)
  -- A key of another type in the place of the queue must not lose the message.
  if queue and type(redis.pcall('RPUSH', prefix .. queue, message)) == 'table' then
    park(message)
  end
end

settle('')
each(settle)
each(hand_back)
each(function(tag)
  local _, message = remove(tag)
  if message then
    park(message)
  end
end)
each(function(tag)
  redis.call('ZADD', deadlines, 'XX', now + visibility, tag)
end)

local limit = tonumber(take())
local late = limit > 0 and redis.call('ZRANGEBYSCORE', deadlines, '-inf', now, 'LIMIT', 0, limit) or {}
for number = #late, 1, -1 do
  hand_back(late[number])
end

local free, serial, oversized = tonumber(take()), 0, 0
local left, messages = {}, {}

local function pop(list, side)
  local message = redis.pcall(side, list)
  return type(message) == 'string' and message
end

for number = 1, (#KEYS - 3) / 2 do
  local queue, woken = KEYS[2 + 2 * number], KEYS[3 + 2 * number]
  local name, count = take(), math.min(free, tonumber(take()))
  -- Whoever was woken may have died, or have no room: what woke it goes back to the front, and wakes another.
  for _ = 1, tonumber(redis.pcall('LLEN', woken)) or 0 do
    redis.call('RPUSH', queue, redis.call('LPOP', woken))
  end
  while count > 0 do
    local message = pop(queue, 'RPOP')
    if not message then
      break
    elseif #message > message_bytes then
      oversized = oversized + 1
      park(message)
    else
      serial = serial + 1
      count = count - 1
      free = free - 1
      local tag = nonce .. serial
      redis.call('HSET', reserved, tag, name .. '\n' .. message)
      redis.call('ZADD', deadlines, now + visibility, tag)
      messages[#messages + 1] = tag
      messages[#messages + 1] = number - 1
      messages[#messages + 1] = message
    end
  end
  left[number] = tonumber(redis.pcall('LLEN', queue)) or 0
end
return {#late, oversized, left, messages}
