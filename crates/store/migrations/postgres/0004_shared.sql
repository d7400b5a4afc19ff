-- The column of ../sqlite/0005_shared.sql, which says what it is for.
ALTER TABLE blobs ADD COLUMN shared BIGINT NOT NULL DEFAULT 0;
CREATE INDEX blobs_unshared ON blobs (content) WHERE shared = 0;

-- The tables below are for replicas that share this index. All times are the server's.

-- Which replicas there are, and when each was last heard of.
CREATE TABLE replicas (
    url     TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seen_at TIMESTAMPTZ NOT NULL
);

-- Who does what only one is to do at a time.
CREATE TABLE leases (
    name       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    holder     TEXT COLLATE "C" NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL
);

-- Who is uploading or removing which object. `upload` is what the bucket calls an upload in parts.
CREATE TABLE claims (
    digest     TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    holder     TEXT COLLATE "C" NOT NULL,
    upload     TEXT COLLATE "C",
    expires_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX claims_by_age ON claims (expires_at);
