-- Writes down what a node says of itself, and that it speaks.
--
-- ARGV[3]  the node
-- ARGV[4]  its report; '' when it is not one of several any more
-- ARGV[5]  'closed' when its ready instances are for nobody now, else 'open'
-- ARGV[6]  its beat

local node = ARGV[3]
if ARGV[4] == '' then
  redis.call('HDEL', base .. 'reports', node)
  redis.call('ZREM', base .. 'reported', node)
  redis.call('ZREM', base .. 'spoke', node)
  redis.call('HDEL', base .. 'beats', node)
else
  -- From the clock, so that a server that was emptied does not begin as it did before.
  local last = redis.call('ZRANGE', base .. 'reported', -1, -1, 'WITHSCORES')
  local number = math.max(time[1] * 1000000 + time[2], (tonumber(last[2]) or 0) + 1)
  redis.call('HSET', base .. 'reports', node, ARGV[4])
  redis.call('ZADD', base .. 'reported', whole(number), node)
  redis.call('ZADD', base .. 'spoke', whole(time[1] * 1000000 + time[2]), node)
  redis.call('HSET', base .. 'beats', node, ARGV[6])
end
redis.call(ARGV[5] == 'closed' and 'SADD' or 'SREM', base .. 'closed', node)
redis.call('HDEL', base .. 'lost', node)
return {}
