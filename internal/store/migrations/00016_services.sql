-- +goose Up
-- Service accounts: users of the kind SERVICE, which have no password.
-- schema_floor stays: earlier programs write users of the kind USER, for which the CHECK
-- holds always. Service accounts themselves wait for the setting service_accounts.

-- The names by which a service is one of the audiences of a token, and the audiences to
-- which the service may carry the identity of its callers. Separated by spaces, sorted.
ALTER TABLE users ADD COLUMN audiences TEXT NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN delegates_to TEXT NOT NULL DEFAULT '';

-- The CHECK holds whatever program writes, also a program that does not know the column.
-- The last of the three columns has the CHECK, so that PostgreSQL reads the rows once.
ALTER TABLE users ADD COLUMN kind TEXT NOT NULL DEFAULT 'USER' CHECK (
    kind = 'USER' AND audiences = '' AND delegates_to = ''
    OR kind = 'SERVICE' AND password_hash = '');

CREATE INDEX users_services ON users (id) WHERE deleted_at IS NULL AND kind = 'SERVICE';

-- +goose Down
DROP INDEX users_services;
ALTER TABLE users DROP COLUMN kind;
ALTER TABLE users DROP COLUMN delegates_to;
ALTER TABLE users DROP COLUMN audiences;
