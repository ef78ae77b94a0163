-- Takes back a counted acquire; absent is fine.
--
-- ARGV[3]  the client
-- ARGV[4]  the ticket

redis.call('ZREM', base .. 'acquires:' .. ARGV[3], ARGV[4])
return {}
