-- Counts a client's acquire in all windows, or in none when one is full; there is
-- at least one.
--
-- ARGV[3]  the client
-- ARGV[4]  the ticket that takes it back
-- ARGV[5]  the present time in microseconds
-- ARGV[6], ARGV[7] and so on  each window's length in microseconds and its limit
--
-- Answers {'admitted' or 'refused', microseconds until it may again, and for each
-- window: what is left, microseconds until its oldest one leaves it}.

local acquires, ticket, now = base .. 'acquires:' .. ARGV[3], ARGV[4], tonumber(ARGV[5])
local windows, longest = {}, 0
for at = 6, #ARGV, 2 do
  windows[#windows + 1] = { length = tonumber(ARGV[at]), limit = tonumber(ARGV[at + 1]) }
  longest = math.max(longest, tonumber(ARGV[at]))
end
redis.call('ZREMRANGEBYSCORE', acquires, '-inf', whole(now - longest))

-- Those in the window, from the number `skip` on; one at most.
local function one_within(window, skip)
  local found = redis.call('ZRANGE', acquires, '(' .. whole(now - window.length), '+inf', 'BYSCORE', 'LIMIT', skip, 1, 'WITHSCORES')
  return found[2] and tonumber(found[2]) + window.length - now
end

local function count_within(window)
  return redis.call('ZCOUNT', acquires, '(' .. whole(now - window.length), '+inf')
end

local wait = 0
-- Counted already: the first answer was lost.
if not redis.call('ZSCORE', acquires, ticket) then
  for _, window in ipairs(windows) do
    local count = count_within(window)
    if count >= window.limit then
      local leaves = window.limit > 0 and one_within(window, count - window.limit)
      wait = math.max(wait, leaves or window.length)
    end
  end
  if wait == 0 then
    redis.call('ZADD', acquires, whole(now), ticket)
    -- By this server's clock, which need not be the caller's: a second more.
    redis.call('PEXPIRE', acquires, whole(math.ceil(longest / 1000) + 1000))
  end
end
local answer = { wait == 0 and 'admitted' or 'refused', whole(wait) }
for _, window in ipairs(windows) do
  answer[#answer + 1] = whole(math.max(0, window.limit - count_within(window)))
  answer[#answer + 1] = whole(one_within(window, 0) or 0)
end
return answer
