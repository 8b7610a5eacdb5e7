-- +goose Up
-- Keys are compared by their bytes: the rules of a language are slower, and may
-- change with the operating system of a standby, beneath the index.
ALTER TABLE settings ALTER COLUMN name TYPE TEXT COLLATE "C";
ALTER TABLE users ALTER COLUMN id TYPE TEXT COLLATE "C", ALTER COLUMN username TYPE TEXT COLLATE "C";
ALTER TABLE sessions ALTER COLUMN id TYPE TEXT COLLATE "C", ALTER COLUMN user_id TYPE TEXT COLLATE "C";
ALTER TABLE signing_keys ALTER COLUMN kid TYPE TEXT COLLATE "C";
ALTER TABLE audit ALTER COLUMN id TYPE TEXT COLLATE "C";

-- A refresh writes its row anew and changes no index. With room in the page it
-- leaves nothing for a vacuum to find in the indexes (a heap-only tuple).
ALTER TABLE sessions SET (fillfactor = 75);
ALTER TABLE head SET (fillfactor = 10);
ALTER TABLE settings SET (fillfactor = 50);

-- +goose Down
ALTER TABLE settings RESET (fillfactor);
ALTER TABLE head RESET (fillfactor);
ALTER TABLE sessions RESET (fillfactor);
