-- +goose Up
-- Collation "C", as for the other keys; see 00004_postgres.sql.
-- schema_floor stays: only the order of the rows changes, and the tables are new.
ALTER TABLE issuers ALTER COLUMN name TYPE TEXT COLLATE "C", ALTER COLUMN issuer TYPE TEXT COLLATE "C";
ALTER TABLE bindings ALTER COLUMN id TYPE TEXT COLLATE "C", ALTER COLUMN issuer TYPE TEXT COLLATE "C",
    ALTER COLUMN subject TYPE TEXT COLLATE "C", ALTER COLUMN user_id TYPE TEXT COLLATE "C";

-- +goose Down
ALTER TABLE issuers ALTER COLUMN name TYPE TEXT;
