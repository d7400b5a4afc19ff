-- The column of ../sqlite/0004_verification.sql, which says what it is for.
ALTER TABLE blobs ADD COLUMN verified_at BIGINT;
CREATE INDEX blobs_by_verification ON blobs ((coalesce(verified_at, stored_at)));
