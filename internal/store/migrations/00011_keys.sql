-- +goose Up
-- A tag authenticates every other column of its row under the master key, with the id of
-- the database (internal/issuer/authentic.go). All rows of one key set have the same
-- counter. A row without a tag is not trusted.
ALTER TABLE signing_keys ADD COLUMN counter BIGINT NOT NULL DEFAULT 0;
ALTER TABLE signing_keys ADD COLUMN tag BYTEA;

-- The enabled admins, of which one must stay.
CREATE INDEX users_admins ON users (id) WHERE deleted_at IS NULL AND NOT disabled
    AND replace(' ' || roles || ' ', ' admin ', '') <> ' ' || roles || ' ';

-- A program without tags would write rows that no newer program trusts.
UPDATE settings SET value = '11' WHERE name = 'schema_floor';

-- +goose Down
UPDATE settings SET value = '3' WHERE name = 'schema_floor';
DROP INDEX users_admins;
ALTER TABLE signing_keys DROP COLUMN tag;
ALTER TABLE signing_keys DROP COLUMN counter;
