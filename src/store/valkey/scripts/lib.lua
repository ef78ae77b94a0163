-- Put before every script by mod.rs.
--
-- KEYS[1]  what all keys begin with, "{prefix}:". No key of its own: it tells a
--          cluster or a proxy the slot, and all keys that are made from it lie there.
-- ARGV[1]  until when the caller waits, in microseconds of this server's clock.
-- ARGV[2]  'again' in a further try: the first one may have done its work and only
--          its answer was lost.
--
-- The keys are drawn in ../keys.rs.

local base = KEYS[1]
local instances, keys = base .. 'instances', base .. 'keys'
local again = ARGV[2] == 'again'

-- Lua writes numbers above 10^14 with an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

-- A command may lie in a socket for long: the server was stopped, the network
-- was gone. Its caller has answered "unavailable" meanwhile and must be right.
local time = redis.call('TIME')
if time[1] * 1000000 + time[2] > tonumber(ARGV[1]) then
  return redis.error_reply('LATE its caller no longer waits')
end

-- The idempotency key under which the record is found, while it is somebody's.
local function key_while_held(record)
  local key = record.idempotency_key
  if key and key ~= cjson.null and (record.state == 'assigned' or record.state == 'hibernated') then
    return key
  end
end

local function leave_indices(record)
  local counts = base .. 'counts:' .. record.golden .. ':' .. record.node
  if redis.call('HINCRBY', counts, record.state, -1) <= 0 then
    redis.call('HDEL', counts, record.state)
  end
  redis.call('SREM', base .. 'of:' .. record.node, record.id)
  redis.call('ZREM', base .. 'ready:' .. record.golden .. ':' .. record.node, record.id)
  redis.call('ZREM', base .. 'due:' .. record.node, record.id)
  local key = key_while_held(record)
  -- A later holder of the same key keeps it.
  if key and redis.call('HGET', keys, key) == record.id then
    redis.call('HDEL', keys, key)
  end
end

-- Has the record's node read it anew (own.lua). Nodes that do not read, since they
-- are gone or of a former program, must not fill the server: those read all again.
local function tell_node(record)
  local changed = base .. 'changed:' .. record.node
  if redis.call('SADD', changed, record.id) == 1 and redis.call('SCARD', changed) > 10000 then
    redis.call('DEL', changed, base .. 'read:' .. record.node)
  end
end

-- Times in microseconds; expires is '' when there is none.
local function enter_indices(record, created, expires)
  redis.call('HINCRBY', base .. 'counts:' .. record.golden .. ':' .. record.node, record.state, 1)
  redis.call('SADD', base .. 'of:' .. record.node, record.id)
  if record.state == 'ready' then
    redis.call('ZADD', base .. 'ready:' .. record.golden .. ':' .. record.node, created, record.id)
    redis.call('SADD', base .. 'pools:' .. record.golden, record.node)
  end
  if expires ~= '' and record.state ~= 'expired' and record.state ~= 'failed' then
    redis.call('ZADD', base .. 'due:' .. record.node, expires, record.id)
  end
  local key = key_while_held(record)
  if key then
    redis.call('HSET', keys, key, record.id)
  end
end

-- Replaces the record `before` (nil: there is none) by the one that `json` is.
local function put(before, json, created, expires)
  local record = cjson.decode(json)
  if before then
    leave_indices(before)
  end
  redis.call('HSET', instances, record.id, json)
  enter_indices(record, created, expires)
  tell_node(record)
end

-- How long, in microseconds, and of how many it is remembered that they have ended: as
-- long and as many as each node remembers of its own (src/route/ended.rs).
local ended_for, ended_most = 86400 * 1000000, 16384

-- Forgets a record; of one that was somebody's it is remembered that it has ended.
local function forget(record)
  leave_indices(record)
  redis.call('HDEL', instances, record.id)
  tell_node(record)
  if record.assigned_at and record.assigned_at ~= cjson.null then
    local ended, now = base .. 'ended', time[1] * 1000000 + time[2]
    redis.call('ZADD', ended, whole(now), record.id)
    redis.call('ZREMRANGEBYSCORE', ended, '-inf', whole(now - ended_for))
    redis.call('ZREMRANGEBYRANK', ended, 0, -1 - ended_most)
    redis.call('PEXPIRE', ended, ended_for / 1000)
  end
end

-- The values of those fields of a hash that have one.
local function values_of(hash, fields)
  local found = {}
  for first = 1, #fields, 1000 do -- unpack() has a limit of some thousands
    local some = redis.call('HMGET', hash, unpack(fields, first, math.min(first + 999, #fields)))
    for _, json in ipairs(some) do
      if json then
        found[#found + 1] = json
      end
    end
  end
  return found
end

-- The records of those ids that have one.
local function records_of(ids)
  return values_of(instances, ids)
end
