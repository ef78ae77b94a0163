-- Writes down what a node says of itself, and that it speaks.
--
-- ARGV[3]  the node
-- ARGV[4]  its report; '' when it is not one of several any more
-- ARGV[5]  'closed' when its ready instances are for nobody now, else 'open'

local node = ARGV[3]
if ARGV[4] == '' then
  redis.call('HDEL', base .. 'reports', node)
  redis.call('HDEL', base .. 'heard', node)
else
  redis.call('HSET', base .. 'reports', node, ARGV[4])
  redis.call('HSET', base .. 'heard', node, whole(time[1] * 1000000 + time[2]))
end
redis.call(ARGV[5] == 'closed' and 'SADD' or 'SREM', base .. 'closed', node)
redis.call('HDEL', base .. 'lost', node)
return {}
