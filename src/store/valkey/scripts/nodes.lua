-- Reads what all nodes say of themselves.

return redis.call('HVALS', base .. 'reports')
