-- The tables of ../sqlite, which say what they are for. Text is compared by its bytes, as SQLite
-- does, and numbers have 64 bits.
CREATE TABLE contents (
    id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest TEXT COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE blobs (
    content   BIGINT PRIMARY KEY REFERENCES contents (id),
    size      BIGINT NOT NULL,
    stored_at BIGINT NOT NULL,
    used_at   BIGINT NOT NULL,
    synced    BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX blobs_by_use ON blobs (used_at);
CREATE INDEX blobs_unsynced ON blobs (content) WHERE synced = 0;

CREATE TABLE manifests (
    content    BIGINT PRIMARY KEY REFERENCES contents (id),
    media_type TEXT COLLATE "C" NOT NULL,
    subject    BIGINT REFERENCES contents (id)
);
CREATE INDEX manifests_by_subject ON manifests (subject) WHERE subject IS NOT NULL;

CREATE TABLE repositories (
    id   BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    UNIQUE (host, name)
);

CREATE TABLE members (
    repository BIGINT NOT NULL REFERENCES repositories (id),
    content    BIGINT NOT NULL REFERENCES contents (id),
    PRIMARY KEY (repository, content)
);
CREATE INDEX members_by_content ON members (content);

CREATE TABLE tags (
    repository BIGINT NOT NULL REFERENCES repositories (id),
    tag        TEXT COLLATE "C" NOT NULL,
    variant    TEXT COLLATE "C" NOT NULL,
    content    BIGINT NOT NULL REFERENCES contents (id),
    media_type TEXT COLLATE "C" NOT NULL,
    size       BIGINT NOT NULL,
    checked_at BIGINT NOT NULL,
    PRIMARY KEY (repository, tag, variant)
);

CREATE TABLE partials (
    digest    TEXT COLLATE "C" PRIMARY KEY,
    size      BIGINT NOT NULL,
    prefix    TEXT COLLATE "C" NOT NULL,
    parked_at BIGINT NOT NULL
);
CREATE INDEX partials_by_age ON partials (parked_at);
