-- Writes down that a node speaks, whose report is what it was.
--
-- ARGV[3]  the node
-- ARGV[4]  its beat
--
-- Answers {'ok'}, or {'unknown'} when there is no report of it.

local node = ARGV[3]
if redis.call('HEXISTS', base .. 'reports', node) == 0 then
  return { 'unknown' }
end
redis.call('ZADD', base .. 'spoke', whole(time[1] * 1000000 + time[2]), node)
redis.call('HSET', base .. 'beats', node, ARGV[4])
redis.call('HDEL', base .. 'lost', node)
return { 'ok' }
