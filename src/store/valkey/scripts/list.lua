-- Reads all records of all nodes.

return redis.call('HVALS', instances)
