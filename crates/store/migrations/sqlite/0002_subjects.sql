-- What a manifest is about, if it is about something: a signature's image, say. Unknown for manifests
-- that were stored before this column was there; those are found again when they are pulled again.
ALTER TABLE manifests ADD COLUMN subject INTEGER REFERENCES contents (id);
CREATE INDEX manifests_by_subject ON manifests (subject) WHERE subject IS NOT NULL;
