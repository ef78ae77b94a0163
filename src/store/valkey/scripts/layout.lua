-- Answers the version of what lies below the prefix; in an empty store it is set.
--
-- ARGV[3]  the version to set

redis.call('SET', base .. 'layout', ARGV[3], 'NX')
return { redis.call('GET', base .. 'layout') }
