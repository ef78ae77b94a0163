-- Marks a silent node's instances as failed and lost, some at a time; forgets all
-- of it when it has been lost for long.
--
-- ARGV[3]  the node
-- ARGV[4]  the beat of its last report, as the caller knows it
-- ARGV[5]  the present time, as in a record
-- ARGV[6]  the same in microseconds
-- ARGV[7]  how many at most
-- ARGV[8]  for how long lost ones are kept, in microseconds
--
-- Answers the records that were marked; none when there is no such instance, or
-- when the node has spoken since.

local node, now, limit = ARGV[3], tonumber(ARGV[6]), tonumber(ARGV[7])
local report = redis.call('HGET', base .. 'reports', node)
if not report or cjson.decode(report).beat ~= ARGV[4] then
  return {}
end
redis.call('HSETNX', base .. 'lost', node, whole(now))
local since = tonumber(redis.call('HGET', base .. 'lost', node))
local forget = now - since >= tonumber(ARGV[8])
local marked, ids = {}, redis.call('SMEMBERS', base .. 'of:' .. node)
for _, id in ipairs(ids) do
  local json = #marked < limit and redis.call('HGET', instances, id)
  local before = json and cjson.decode(json)
  if before and before.state ~= 'expired' and before.state ~= 'failed' then
    local record = cjson.decode(json)
    record.generation = record.generation + 1
    record.state = 'failed'
    record.lost_at = ARGV[5]
    local lost = cjson.encode(record)
    put(before, lost, '', '')
    marked[#marked + 1] = lost
  elseif before and forget then
    leave_indices(before)
    redis.call('HDEL', instances, id)
  end
end
if forget and #marked == 0 and redis.call('SCARD', base .. 'of:' .. node) == 0 then
  for _, hash in ipairs({ 'reports', 'heard', 'lost' }) do
    redis.call('HDEL', base .. hash, node)
  end
  redis.call('SREM', base .. 'closed', node)
end
return marked
