-- Takes back all that was counted of a client; absent is fine.
--
-- ARGV[3]  the client

redis.call('DEL', base .. 'acquires:' .. ARGV[3])
return {}
