-- +goose Up
-- Counts of wrong guesses (internal/throttle). The ids come from a fixed range, so the
-- table has a bounded number of rows. An id is a part of a MAC of an account's name, known
-- or not: without the master key, no id tells a name. Times are microseconds since 1970.
CREATE TABLE throttle (
    id       BIGINT PRIMARY KEY,
    clear_at BIGINT NOT NULL, -- the bucket counts no wrong guess from then on
    next_at  BIGINT NOT NULL, -- the next try is admitted from then on
    promises BYTEA  NOT NULL  -- promised tries; internal/throttle/promise.go describes them
);

-- The newest sessions of a user, ended or not, are the known devices. An index of all
-- sessions would be used for the list of live ones too, and lead through the ended ones.
CREATE INDEX sessions_ended ON sessions (user_id, born_ver, created_at, id) WHERE ended_at IS NOT NULL;

-- +goose Down
DROP INDEX sessions_ended;
DROP TABLE throttle;
