-- Reads a node's records and says that the node lives.
--
-- ARGV[3]  the node
-- ARGV[4]  the daemon, which is not another one's of the same name
-- ARGV[5]  for how long the name is this daemon's, in milliseconds

local holder = redis.call('GET', base .. 'node:' .. ARGV[3])
if holder and holder ~= ARGV[4] then
  return redis.error_reply('TAKEN another daemon has the node name ' .. ARGV[3])
end
redis.call('SET', base .. 'node:' .. ARGV[3], ARGV[4], 'PX', ARGV[5])
return records_of(redis.call('SMEMBERS', base .. 'of:' .. ARGV[3]))
