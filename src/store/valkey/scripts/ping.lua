-- Answers when the server takes writes: neither a replica, nor out of memory or disk.

redis.call('SET', base .. 'ping', '', 'EX', 60)
return {}
