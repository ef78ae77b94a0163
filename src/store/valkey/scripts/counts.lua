-- Counts a golden's records of a node by state.
--
-- ARGV[3]  the golden
-- ARGV[4]  the node
--
-- Answers {state, count, state, count, ..}.

return redis.call('HGETALL', base .. 'counts:' .. ARGV[3] .. ':' .. ARGV[4])
