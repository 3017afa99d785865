-- The ledger file, schema version 2. `application_id` is "atst", `user_version` the schema version.
-- What the tree needs is in tree.sql.

-- sequence → body, and nothing that would need a second index: the commit appends to the right
-- edge of a few trees, so it costs the same at a million rows as at a thousand.
CREATE TABLE entries (
    sequence     INTEGER PRIMARY KEY,
    -- Byte offset in `body` at which the text of `hsm_signature` goes.
    signature_at INTEGER NOT NULL,
    -- The canonical line with an empty `hsm_signature`.
    body         BLOB NOT NULL,
    -- Only where a client gave the entry id: its uid, and the hash by which "the same content"
    -- is judged when the id comes again.
    caller       INTEGER,
    content      BLOB
) STRICT;

-- What was reserved together is signed and committed together. A row without signatures is
-- reserved: a restart signs exactly that, with this key and in this mode.
CREATE TABLE commits (
    first      INTEGER PRIMARY KEY,
    count      INTEGER NOT NULL,
    key_id     BLOB NOT NULL,
    mode       TEXT NOT NULL,
    -- Bytes of all sealed lines, line feeds included, from entry 0 to the end of this commit.
    bytes      INTEGER,
    -- r‖s, 64 bytes each: of each entry in order, or in mode commit the one of the checkpoint.
    signatures BLOB,
    -- The text of the checkpoint over all entries to the end of this commit, where there is one.
    -- In mode commit it is reserved with the entries.
    checkpoint TEXT,
    -- Its signature, except in mode commit.
    checkpoint_signature BLOB
) STRICT;
