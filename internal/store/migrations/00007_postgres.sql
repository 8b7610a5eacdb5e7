-- +goose Up
-- Collation "C", as for the other keys; see 00004_postgres.sql.
ALTER TABLE usernames ALTER COLUMN username TYPE TEXT COLLATE "C", ALTER COLUMN user_id TYPE TEXT COLLATE "C";

-- One row, which a transaction locks to be the only one of its kind (Tx.Exclusive). A
-- role without rights on the table cannot lock the row, and could hold an advisory lock.
CREATE TABLE exclusive_lock (
    id BIGINT PRIMARY KEY CHECK (id = 1)
);
INSERT INTO exclusive_lock (id) VALUES (1);

-- If two processes migrate at once, because one of them was frozen and has lost the lock
-- of the migrations, each migration is still committed once.
CREATE UNIQUE INDEX goose_db_version_once ON goose_db_version (version_id);

-- +goose Down
DROP INDEX goose_db_version_once;
DROP TABLE exclusive_lock;
