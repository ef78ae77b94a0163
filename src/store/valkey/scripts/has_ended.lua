-- Whether an instance was somebody's and has been forgotten not long ago.
--
-- ARGV[3]  its id
--
-- Answers {'ended'}, or {}.

local at = redis.call('ZSCORE', base .. 'ended', ARGV[3])
if at and tonumber(at) > time[1] * 1000000 + time[2] - ended_for then
  return { 'ended' }
end
return {}
