-- What decides the order in which blobs go. `queue` is 0 on probation, 1 in the main queue. `rank` is
-- the place in it: on probation when the blob came, in milliseconds since 1970; in the main queue what
-- larder_core::eviction says. `room` is what the blob takes on the disk, in bytes: its size in whole
-- blocks. `source` is the repository that it was fetched for, whose upstream it counts for.
ALTER TABLE blobs ADD COLUMN queue INTEGER NOT NULL DEFAULT 0;
ALTER TABLE blobs ADD COLUMN uses INTEGER NOT NULL DEFAULT 1;
ALTER TABLE blobs ADD COLUMN rank REAL NOT NULL DEFAULT 0;
ALTER TABLE blobs ADD COLUMN room INTEGER NOT NULL DEFAULT 0;
ALTER TABLE blobs ADD COLUMN source INTEGER REFERENCES repositories (id);
UPDATE blobs SET
    rank = stored_at,
    room = (size + 4095) / 4096 * 4096,
    source = (SELECT min(repository) FROM members WHERE members.content = blobs.content);
CREATE INDEX blobs_by_turn ON blobs (queue, rank, used_at);

-- The same of what is kept of a blob.
ALTER TABLE partials ADD COLUMN room INTEGER NOT NULL DEFAULT 0;
UPDATE partials SET room = (size + 4095) / 4096 * 4096;

-- What manifests are made of: their blobs, and the manifests of an index. `parts_known` is 0 for a
-- manifest that was stored before this table was there, until it has been read.
CREATE TABLE parts (
    manifest INTEGER NOT NULL REFERENCES contents (id),
    child    INTEGER NOT NULL REFERENCES contents (id),
    PRIMARY KEY (manifest, child)
) WITHOUT ROWID;
CREATE INDEX parts_by_child ON parts (child);
ALTER TABLE manifests ADD COLUMN parts_known INTEGER NOT NULL DEFAULT 0;
CREATE INDEX manifests_unread ON manifests (content) WHERE parts_known = 0;

-- When the last tag that named a manifest moved on. NULL: a tag names it, or none ever did.
ALTER TABLE manifests ADD COLUMN superseded_at INTEGER;
CREATE INDEX manifests_superseded ON manifests (content) WHERE superseded_at IS NOT NULL;
CREATE INDEX tags_by_content ON tags (content);

-- Names of what has gone lately, and how often it was used.
CREATE TABLE gone (
    content INTEGER PRIMARY KEY REFERENCES contents (id),
    room    INTEGER NOT NULL,
    uses    INTEGER NOT NULL,
    gone_at INTEGER NOT NULL
);
CREATE INDEX gone_by_age ON gone (gone_at);

-- Images that somebody wants to stay, beside those of the configuration.
CREATE TABLE pins (
    pattern   TEXT NOT NULL PRIMARY KEY,
    pinned_at INTEGER NOT NULL
) WITHOUT ROWID;

-- Numbers that outlive the process, by name: `age`, of the order above.
CREATE TABLE numbers (
    name  TEXT NOT NULL PRIMARY KEY,
    value REAL NOT NULL
) WITHOUT ROWID;
