-- Full tiles, and those partial ones that have hashes of nodes. The partial tile of leaves is what
-- the last entries hash to, so it is not kept: it would be written again with every commit.
CREATE TABLE tiles (
    level  INTEGER NOT NULL,
    tile   INTEGER NOT NULL,
    hashes BLOB NOT NULL,
    PRIMARY KEY (level, tile)
) WITHOUT ROWID, STRICT;

CREATE INDEX checkpoints ON commits (first) WHERE checkpoint IS NOT NULL;
