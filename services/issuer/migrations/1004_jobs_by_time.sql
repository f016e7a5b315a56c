-- Which jobs may live: an emergency does not search all that was issued since for them.
CREATE INDEX jobs_by_time ON events (recorded_at) WHERE event_type = 'tharsis.issuer.v1.JobOpened';
