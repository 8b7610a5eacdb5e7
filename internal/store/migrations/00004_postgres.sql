-- +goose Up
-- Collation "C" compares keys by their bytes. The collation of a language is slower,
-- and an update of the operating system on a standby may change it without the index.
ALTER TABLE settings ALTER COLUMN name TYPE TEXT COLLATE "C";
ALTER TABLE users ALTER COLUMN id TYPE TEXT COLLATE "C", ALTER COLUMN username TYPE TEXT COLLATE "C";
ALTER TABLE sessions ALTER COLUMN id TYPE TEXT COLLATE "C", ALTER COLUMN user_id TYPE TEXT COLLATE "C";
ALTER TABLE signing_keys ALTER COLUMN kid TYPE TEXT COLLATE "C";
ALTER TABLE audit ALTER COLUMN id TYPE TEXT COLLATE "C", ALTER COLUMN type TYPE TEXT COLLATE "C",
    ALTER COLUMN actor_id TYPE TEXT COLLATE "C", ALTER COLUMN user_id TYPE TEXT COLLATE "C",
    ALTER COLUMN session_id TYPE TEXT COLLATE "C";

-- A refresh writes a new version of its row and changes no index. If the page has room
-- for the new version (a heap-only tuple), a vacuum has nothing to do in the indexes.
-- So a fillfactor leaves room in each page.
ALTER TABLE sessions SET (fillfactor = 75);
ALTER TABLE head SET (fillfactor = 10);
ALTER TABLE settings SET (fillfactor = 50);

-- +goose Down
ALTER TABLE settings RESET (fillfactor);
ALTER TABLE head RESET (fillfactor);
ALTER TABLE sessions RESET (fillfactor);
