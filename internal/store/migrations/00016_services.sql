-- +goose Up
-- Service accounts: users of the kind SERVICE, which have no password.
-- schema_floor stays: earlier programs write users of the kind USER, for which the CHECK
-- holds always. The first service account raises schema_floor (internal/store/finish.go).

-- The names by which a service is one of the audiences of a token, and the audiences to
-- which the service may carry the identity of its callers. Separated by spaces, sorted.
ALTER TABLE users ADD COLUMN audiences TEXT NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN delegates_to TEXT NOT NULL DEFAULT '';

-- The CHECK holds whatever program writes, also a program that does not know the column.
-- The last of the three columns has the CHECK, so that PostgreSQL reads the rows once: the
-- migration takes half a second for a million users.
ALTER TABLE users ADD COLUMN kind TEXT NOT NULL DEFAULT 'USER' CHECK (
    kind = 'USER' AND audiences = '' AND delegates_to = ''
    OR kind = 'SERVICE' AND password_hash = '');

-- The newest migration of the program that has written the row; 0: of an earlier program
-- than this migration. The columns exclude earlier programs that still run when
-- schema_floor rises (internal/store/finish.go).
ALTER TABLE events ADD COLUMN program BIGINT NOT NULL DEFAULT 0;
ALTER TABLE replicas ADD COLUMN program BIGINT NOT NULL DEFAULT 0;

CREATE INDEX users_services ON users (id) WHERE deleted_at IS NULL AND kind = 'SERVICE';

-- +goose Down
DROP INDEX users_services;
ALTER TABLE replicas DROP COLUMN program;
ALTER TABLE events DROP COLUMN program;
ALTER TABLE users DROP COLUMN kind;
ALTER TABLE users DROP COLUMN delegates_to;
ALTER TABLE users DROP COLUMN audiences;
