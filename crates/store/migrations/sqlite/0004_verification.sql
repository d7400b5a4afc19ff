-- When a blob's bytes were last read and found right. Unknown until it has been read again after it
-- was stored: then, or before the column was there, `stored_at` counts.
ALTER TABLE blobs ADD COLUMN verified_at INTEGER;
CREATE INDEX blobs_by_verification ON blobs (coalesce(verified_at, stored_at));
