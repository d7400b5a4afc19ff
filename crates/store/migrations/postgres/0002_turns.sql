-- The columns and tables of ../sqlite/0003_turns.sql, which says what they are for.
ALTER TABLE blobs ADD COLUMN queue BIGINT NOT NULL DEFAULT 0;
ALTER TABLE blobs ADD COLUMN uses BIGINT NOT NULL DEFAULT 1;
ALTER TABLE blobs ADD COLUMN rank DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE blobs ADD COLUMN room BIGINT NOT NULL DEFAULT 0;
ALTER TABLE blobs ADD COLUMN source BIGINT REFERENCES repositories (id);
UPDATE blobs SET
    rank = stored_at,
    room = (size + 4095) / 4096 * 4096,
    source = (SELECT min(repository) FROM members WHERE members.content = blobs.content);
CREATE INDEX blobs_by_turn ON blobs (queue, rank, used_at);

ALTER TABLE partials ADD COLUMN room BIGINT NOT NULL DEFAULT 0;
UPDATE partials SET room = (size + 4095) / 4096 * 4096;

CREATE TABLE parts (
    manifest BIGINT NOT NULL REFERENCES contents (id),
    child    BIGINT NOT NULL REFERENCES contents (id),
    PRIMARY KEY (manifest, child)
);
CREATE INDEX parts_by_child ON parts (child);
ALTER TABLE manifests ADD COLUMN parts_known BIGINT NOT NULL DEFAULT 0;
CREATE INDEX manifests_unread ON manifests (content) WHERE parts_known = 0;

ALTER TABLE manifests ADD COLUMN superseded_at BIGINT;
CREATE INDEX manifests_superseded ON manifests (content) WHERE superseded_at IS NOT NULL;
CREATE INDEX tags_by_content ON tags (content);

CREATE TABLE gone (
    content BIGINT PRIMARY KEY REFERENCES contents (id),
    room    BIGINT NOT NULL,
    uses    BIGINT NOT NULL,
    gone_at BIGINT NOT NULL
);
CREATE INDEX gone_by_age ON gone (gone_at);

CREATE TABLE pins (
    pattern   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    pinned_at BIGINT NOT NULL
);

CREATE TABLE numbers (
    name  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value DOUBLE PRECISION NOT NULL
);
