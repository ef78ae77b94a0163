-- Takes back a claim whose answer nobody got: nobody knows the instance's name,
-- so nobody can come for it. Its node takes it down.
--
-- ARGV[3]  the claim's ticket
--
-- Answers {id}, or {} when there was no such claim.

local ticket = base .. 'claims:' .. ARGV[3]
local claimed = redis.call('HMGET', ticket, 'id', 'generation')
redis.call('DEL', ticket)
local json = claimed[1] and redis.call('HGET', instances, claimed[1])
if not json then
  return {}
end
local before, record = cjson.decode(json), cjson.decode(json)
-- Changed since: then somebody does know it.
if whole(before.generation) ~= claimed[2] then
  return {}
end
record.generation = record.generation + 1
record.state = 'expired'
put(before, cjson.encode(record), '', '')
return { record.id }
