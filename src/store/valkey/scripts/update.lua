-- Replaces a record if nobody changed it since it was read.
--
-- ARGV[3]  the record, with the next generation
-- ARGV[4]  its created_at in microseconds
-- ARGV[5]  its expires_at in microseconds, or ''
-- ARGV[6]  the states from which it may come to its state, between commas: ',ready,assigned,'
--
-- Answers {'ok'}, in a further try also when this very record is there.
-- {'unknown'}, {'stale', generation}, {'denied', state}: nothing was changed.

local record = cjson.decode(ARGV[3])
local stored = redis.call('HGET', instances, record.id)
if not stored then
  return { 'unknown' }
end
if again and stored == ARGV[3] then
  return { 'ok' }
end
local before = cjson.decode(stored)
if before.generation ~= record.generation - 1 then
  return { 'stale', whole(before.generation) }
end
if not ARGV[6]:find(',' .. before.state .. ',', 1, true) then
  return { 'denied', before.state }
end
put(before, ARGV[3], ARGV[4], ARGV[5])
return { 'ok' }
