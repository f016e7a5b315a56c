-- The private halves of the signing keys, encrypted. What a key is for, and since when, the log says.
CREATE TABLE signing_keys (
    kid    text PRIMARY KEY COLLATE "C",
    -- PKCS #8, sealed with the key-encryption key.
    sealed bytea NOT NULL
);
