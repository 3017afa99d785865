-- The index beside the ledger, disposable: deleted, it is built again from the ledger.

-- Which ledger, and how far the index has come.
CREATE TABLE mark (genesis BLOB NOT NULL, indexed INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;

-- Entry ids in sorted runs. Random keys cost what a tree is large, so each run is written in order
-- of its ids and runs are merged, sixteen at a time, into larger ones.
CREATE TABLE runs (run INTEGER PRIMARY KEY AUTOINCREMENT, level INTEGER NOT NULL) STRICT;
CREATE TABLE ids (run INTEGER NOT NULL, id BLOB NOT NULL, sequence INTEGER NOT NULL, PRIMARY KEY (run, id))
    WITHOUT ROWID, STRICT;

-- Actors and action types by number.
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;

-- What entries can be filtered by. Both trees beside the table grow only at the end of each name's
-- stretch.
CREATE TABLE facts (
    sequence INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    type     INTEGER NOT NULL,
    category INTEGER NOT NULL,
    status   INTEGER NOT NULL,
    severity INTEGER NOT NULL,
    actor    INTEGER NOT NULL,
    action   INTEGER NOT NULL
) STRICT;
CREATE INDEX facts_by_actor ON facts (actor, sequence);
CREATE INDEX facts_by_action ON facts (action, sequence);

-- The entries that can change the state of governance: from these alone it is built again.
CREATE TABLE steps (sequence INTEGER PRIMARY KEY) STRICT;
