-- More of the identities' log is kept than before: it is followed from its beginning again.
DELETE FROM facts WHERE log = 'identity';
DELETE FROM checkpoints WHERE log = 'identity';
