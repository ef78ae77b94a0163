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
if redis.call('HGET', base .. 'beats', node) ~= ARGV[4] then
  return {}
end
redis.call('HSETNX', base .. 'lost', node, whole(now))
local since = tonumber(redis.call('HGET', base .. 'lost', node))
local is_old = now - since >= tonumber(ARGV[8])
-- All nodes ask; the first ones do it.
if not is_old and redis.call('HGET', base .. 'marked', node) == ARGV[4] then
  return {}
end
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
  elseif before and is_old then
    forget(before)
  end
end
if #marked == 0 then
  redis.call('HSET', base .. 'marked', node, ARGV[4])
end
if is_old and #marked == 0 and redis.call('SCARD', base .. 'of:' .. node) == 0 then
  for _, hash in ipairs({ 'reports', 'beats', 'lost', 'marked' }) do
    redis.call('HDEL', base .. hash, node)
  end
  redis.call('ZREM', base .. 'reported', node)
  redis.call('ZREM', base .. 'spoke', node)
  redis.call('SREM', base .. 'closed', node)
  redis.call('DEL', base .. 'changed:' .. node, base .. 'read:' .. node)
end
return marked
