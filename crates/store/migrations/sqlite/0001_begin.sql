-- Names of content, so that other tables can refer to it by a small number. A name may be here
-- before its content is: a manifest names layers that nobody has pulled yet.
CREATE TABLE contents (
    id     INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE
);

-- What is stored under blobs/. `synced` is 0 until file and directory are known to be on disk: a
-- row with 0 at start is verified before it is believed.
CREATE TABLE blobs (
    content   INTEGER PRIMARY KEY REFERENCES contents (id),
    size      INTEGER NOT NULL,
    stored_at INTEGER NOT NULL,
    used_at   INTEGER NOT NULL,
    synced    INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX blobs_by_use ON blobs (used_at);
CREATE INDEX blobs_unsynced ON blobs (content) WHERE synced = 0;

-- Which blobs are manifests, and the media type that upstream gave them.
CREATE TABLE manifests (
    content    INTEGER PRIMARY KEY REFERENCES contents (id),
    media_type TEXT NOT NULL
);

CREATE TABLE repositories (
    id   INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (host, name)
);

-- Which content may be served under which repository: a stored manifest of the repository refers
-- to it, or upstream has confirmed it.
CREATE TABLE members (
    repository INTEGER NOT NULL REFERENCES repositories (id),
    content    INTEGER NOT NULL REFERENCES contents (id),
    PRIMARY KEY (repository, content)
) WITHOUT ROWID;
CREATE INDEX members_by_content ON members (content);

-- What a tag named when upstream was last asked. `variant` is empty for the answer to a client that
-- accepts everything; else it is the `Accept` that got another answer.
CREATE TABLE tags (
    repository INTEGER NOT NULL REFERENCES repositories (id),
    tag        TEXT NOT NULL,
    variant    TEXT NOT NULL,
    content    INTEGER NOT NULL REFERENCES contents (id),
    media_type TEXT NOT NULL,
    size       INTEGER NOT NULL,
    checked_at INTEGER NOT NULL,
    PRIMARY KEY (repository, tag, variant)
) WITHOUT ROWID;

-- Beginnings of blobs under partial/. `prefix` is the digest of those bytes.
CREATE TABLE partials (
    digest    TEXT PRIMARY KEY,
    size      INTEGER NOT NULL,
    prefix    TEXT NOT NULL,
    parked_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX partials_by_age ON partials (parked_at);
