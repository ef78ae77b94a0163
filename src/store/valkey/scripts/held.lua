-- Reads the instance that is held under an idempotency key.
--
-- ARGV[3]  the key
--
-- Answers {record}, or {}.

local id = redis.call('HGET', keys, ARGV[3])
return records_of(id and { id } or {})
