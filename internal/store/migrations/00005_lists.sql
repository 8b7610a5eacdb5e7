-- +goose Up
-- A list reads the rows of its page, and no row before them, through an index.

-- The sessions of a user that have not ended, in order of age. The condition
-- born_ver >= revoked_below selects the sessions that did not end with all sessions of
-- the user. No column here changes with a refresh, so a refresh changes no index.
CREATE INDEX sessions_live ON sessions (user_id, born_ver, created_at, id) WHERE ended_at IS NULL;
DROP INDEX sessions_user_id;

-- Deleted users keep their rows.
CREATE INDEX users_live ON users (id) WHERE deleted_at IS NULL;

-- One index for each filter of the security record. A user that acts on the user's own
-- account is in one index, not in two.
CREATE INDEX audit_type ON audit (type, id);
CREATE INDEX audit_user_id ON audit (user_id, id) WHERE user_id <> '';
CREATE INDEX audit_actor_id ON audit (actor_id, id) WHERE actor_id <> '' AND actor_id <> user_id;
CREATE INDEX audit_session_id ON audit (session_id, id) WHERE session_id <> '';

-- +goose Down
DROP INDEX audit_session_id;
DROP INDEX audit_actor_id;
DROP INDEX audit_user_id;
DROP INDEX audit_type;
DROP INDEX users_live;
CREATE INDEX sessions_user_id ON sessions (user_id, id);
DROP INDEX sessions_live;
