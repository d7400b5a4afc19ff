-- Whether the tier that replicas share has the blob, too. What has yet to be uploaded is found by it
-- after a crash or an outage.
ALTER TABLE blobs ADD COLUMN shared INTEGER NOT NULL DEFAULT 0;
CREATE INDEX blobs_unshared ON blobs (content) WHERE shared = 0;
