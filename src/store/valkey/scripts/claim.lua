-- Takes the oldest ready instance of a golden: the own node's, else any other's.
-- Closed nodes' are for nobody, and those of a node that fell silent may be gone.
--
-- ARGV[3]  the golden
-- ARGV[4]  the own node
-- ARGV[5]  the ticket: names this claim, for a second try and for disown.lua
-- ARGV[6]  the idempotency key, or ''
-- ARGV[7]  the present time in microseconds
-- ARGV[8]  assigned_at, as in a record
-- ARGV[9]  expires_at, as in a record
-- ARGV[10]  expires_at in microseconds
-- ARGV[11] how long the ticket is good, in seconds
--
-- Answers {'new', record}, {'again', record} when the key has an instance that is
-- not due, or {'empty'}.

local golden, own, ticket, key = ARGV[3], ARGV[4], base .. 'claims:' .. ARGV[5], ARGV[6]

local claimed_before = redis.call('HMGET', ticket, 'id', 'generation')
if claimed_before[1] then
  local json = redis.call('HGET', instances, claimed_before[1])
  if json and whole(cjson.decode(json).generation) == claimed_before[2] then
    return { 'new', json }
  end
end

local holder = key ~= '' and redis.call('HGET', keys, key)
local held = holder and redis.call('HGET', instances, holder)
if held then
  local due = redis.call('ZSCORE', base .. 'due:' .. cjson.decode(held).node, holder)
  if not due or tonumber(due) > tonumber(ARGV[7]) then
    return { 'again', held }
  end
end

local pools = base .. 'pools:' .. golden

local function is_closed(node)
  return redis.call('SISMEMBER', base .. 'closed', node) == 1
end

-- Three of its reports are missing. One that never announced itself is no silent one.
local function is_silent(node)
  local spoke = redis.call('ZSCORE', base .. 'spoke', node)
  return spoke and tonumber(spoke) < time[1] * 1000000 + time[2] - 3000000
end

-- The node among those whose oldest one is the oldest.
local function oldest_of(nodes)
  local oldest, at
  for _, node in ipairs(nodes) do
    local first = redis.call('ZRANGE', base .. 'ready:' .. golden .. ':' .. node, 0, 0, 'WITHSCORES')
    if not first[1] then
      redis.call('SREM', pools, node)
    elseif (not at or tonumber(first[2]) < at) and not is_silent(node) and not is_closed(node) then
      oldest, at = node, tonumber(first[2])
    end
  end
  return oldest
end

-- With many nodes, of some by chance: looking at all takes the server's time. Only when
-- none of them has one it is looked further.
local function another_node()
  return oldest_of(redis.call('SRANDMEMBER', pools, 32)) or oldest_of(redis.call('SMEMBERS', pools))
end

local function pop()
  local first = is_closed(own) and {} or redis.call('ZPOPMIN', base .. 'ready:' .. golden .. ':' .. own)
  if first[1] then
    return first[1]
  end
  local node = another_node()
  return node and redis.call('ZPOPMIN', base .. 'ready:' .. golden .. ':' .. node)[1]
end

local id = pop()
if not id then
  return { 'empty' }
end
local ready = redis.call('HGET', instances, id)
local before, record = cjson.decode(ready), cjson.decode(ready)
record.generation = record.generation + 1
record.state = 'assigned'
record.source = 'pool'
record.assigned_at = ARGV[8]
record.expires_at = ARGV[9]
record.idempotency_key = key ~= '' and key or cjson.null
local json = cjson.encode(record)
put(before, json, '', ARGV[10])
redis.call('HSET', ticket, 'id', id, 'generation', whole(record.generation))
redis.call('EXPIRE', ticket, ARGV[11])
return { 'new', json }
