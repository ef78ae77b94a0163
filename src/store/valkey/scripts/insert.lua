-- Adds a record.
--
-- ARGV[3]  the record
-- ARGV[4]  its created_at in microseconds
-- ARGV[5]  its expires_at in microseconds, or ''
--
-- Answers {'ok'}, in a further try also when this very record is there.
-- {'exists'} when another one has the id.

local stored = redis.call('HGET', instances, cjson.decode(ARGV[3]).id)
if stored then
  return { again and stored == ARGV[3] and 'ok' or 'exists' }
end
put(nil, ARGV[3], ARGV[4], ARGV[5])
return { 'ok' }
