-- +goose Up
-- Collation "C", as for the other keys; see 00004_postgres.sql.
ALTER TABLE usernames ALTER COLUMN username TYPE TEXT COLLATE "C", ALTER COLUMN user_id TYPE TEXT COLLATE "C";

-- +goose Down
