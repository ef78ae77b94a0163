-- Forgets a record; absent is fine.
--
-- ARGV[3]  its id

local stored = redis.call('HGET', instances, ARGV[3])
if stored then
  forget(cjson.decode(stored))
end
return {}
