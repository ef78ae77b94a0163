-- Reads a node's records, or what has changed of them, and says that the node lives.
--
-- ARGV[3]  the node
-- ARGV[4]  the daemon, which is not another one's of the same name
-- ARGV[5]  for how long the name is this daemon's, in milliseconds
-- ARGV[6]  the mark of the reader's last reading; '' when it wants all
-- ARGV[7]  what the mark of this reading begins with, which nobody has used before
--
-- Answers {'all', mark, record, ..}, or {'changes', mark, id, record or '', ..}.
--
-- A command whose connection broke may be done twice, the second time after another
-- reading: each time has a mark of its own, so that the next reading finds out.
-- The marks tell whether everything up to the last reading is here and its answer was
-- heard: a server that was emptied, or has gone back in time, has another mark or none.

local node = ARGV[3]
local holder = redis.call('GET', base .. 'node:' .. node)
if holder and holder ~= ARGV[4] then
  return redis.error_reply('TAKEN another daemon has the node name ' .. node)
end
redis.call('SET', base .. 'node:' .. node, ARGV[4], 'PX', ARGV[5])
redis.call('HDEL', base .. 'marked', node)

local changed = base .. 'changed:' .. node
local mark = ARGV[7] .. '-' .. time[1] .. '-' .. time[2]
local before = redis.call('SET', base .. 'read:' .. node, mark, 'GET')
if ARGV[6] == '' or before ~= ARGV[6] then
  redis.call('DEL', changed)
  local all = records_of(redis.call('SMEMBERS', base .. 'of:' .. node))
  table.insert(all, 1, 'all')
  table.insert(all, 2, mark)
  return all
end
local answer = { 'changes', mark }
local ids = redis.call('SMEMBERS', changed)
if #ids > 0 then
  redis.call('DEL', changed)
end
for _, id in ipairs(ids) do
  answer[#answer + 1] = id
  answer[#answer + 1] = redis.call('HGET', instances, id) or ''
end
return answer
