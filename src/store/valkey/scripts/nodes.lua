-- Reads what nodes say of themselves, and who of them is late.
--
-- ARGV[3]  the number of the last report that the reader has, or '' for all of them
-- ARGV[4]  from when on a node is late, in microseconds
--
-- Answers {number, how many nodes there are, how many reports follow, report, ..,
-- node, beat, silence in microseconds, ..}: of those that are late.

local reports, reported, spoke = base .. 'reports', base .. 'reported', base .. 'spoke'
local now = time[1] * 1000000 + time[2]
local last = redis.call('ZRANGE', reported, -1, -1, 'WITHSCORES')
local number = last[2] and whole(tonumber(last[2])) or '0'
local answer = { number, tostring(redis.call('HLEN', reports)), '0' }

local found
if ARGV[3] == '' then
  found = redis.call('HVALS', reports)
else
  found = values_of(reports, redis.call('ZRANGE', reported, '(' .. ARGV[3], '+inf', 'BYSCORE'))
end
for _, json in ipairs(found) do
  answer[#answer + 1] = json
end
answer[3] = tostring(#found)

local function late(from, to)
  for _, node in ipairs(redis.call('ZRANGE', spoke, from, to, 'BYSCORE')) do
    local silence = now - tonumber(redis.call('ZSCORE', spoke, node))
    answer[#answer + 1] = node
    answer[#answer + 1] = redis.call('HGET', base .. 'beats', node) or ''
    answer[#answer + 1] = whole(math.max(silence, 0))
  end
end
late('-inf', whole(now - tonumber(ARGV[4])))
-- The clock was set back since they spoke.
late('(' .. whole(now + 1000000), '+inf')
return answer
