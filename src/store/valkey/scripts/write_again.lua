-- Writes a record that was lost: there is none, or an earlier one.
--
-- ARGV[3]  the record
-- ARGV[4]  its created_at in microseconds
-- ARGV[5]  its expires_at in microseconds, or ''
--
-- Answers {'ok'}, or {'stale', generation} when there is one as late.

local record = cjson.decode(ARGV[3])
local stored = redis.call('HGET', instances, record.id)
if again and stored == ARGV[3] then
  return { 'ok' }
end
local before = stored and cjson.decode(stored) or nil
if before and before.generation >= record.generation then
  return { 'stale', whole(before.generation) }
end
put(before, ARGV[3], ARGV[4], ARGV[5])
return { 'ok' }
