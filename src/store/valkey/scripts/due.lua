-- Reads a node's records that are due, the earliest first.
--
-- ARGV[3]  the node
-- ARGV[4]  the present time in microseconds
-- ARGV[5]  how many at most

return records_of(redis.call('ZRANGE', base .. 'due:' .. ARGV[3], '-inf', ARGV[4], 'BYSCORE', 'LIMIT', 0, ARGV[5]))
