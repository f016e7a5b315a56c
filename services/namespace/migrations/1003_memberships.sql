-- What a service account had where its group is not above any more did not end with the move, before. All of them are
-- looked at once: they are noted as if each place had just been moved.
INSERT INTO reactions (log, position, event_id, resource_id)
SELECT 'namespace', -row_number() OVER (), gen_random_uuid(), namespace_id
FROM (SELECT DISTINCT split_part(key, '/', 2) AS namespace_id FROM facts WHERE key LIKE 'member/%/service_account:%') of_accounts;
