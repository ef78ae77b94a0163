-- Reads a record.
--
-- ARGV[3]  its id
--
-- Answers {record}, or {}.

return records_of({ ARGV[3] })
