-- Forgets a record; absent is fine.
--
-- ARGV[3]  its id

local stored = redis.call('HGET', instances, ARGV[3])
if stored then
  leave_indices(cjson.decode(stored))
  redis.call('HDEL', instances, ARGV[3])
end
return {}
