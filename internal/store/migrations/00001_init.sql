-- +goose Up
-- Times are microseconds since 1970, UTC. Ids of users and sessions are 16
-- characters of base64url.

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- One row: the number of the newest event. A transaction that appends an event updates
-- the row last, and so holds the row's lock until its commit. So numbers have no gaps,
-- and the order of numbers is the order of commits.
CREATE TABLE head (
    id  BIGINT PRIMARY KEY CHECK (id = 1),
    seq BIGINT NOT NULL
);
INSERT INTO head (id, seq) VALUES (1, 0);

CREATE TABLE events (
    seq        BIGINT PRIMARY KEY,
    tag        BYTEA  NOT NULL,
    kind       TEXT   NOT NULL,
    subject    TEXT   NOT NULL,
    version    BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX events_expires_at ON events (expires_at);

CREATE TABLE users (
    id            TEXT    PRIMARY KEY,
    username      TEXT    NOT NULL,
    password_hash TEXT    NOT NULL,
    roles         TEXT    NOT NULL, -- separated by spaces, sorted
    disabled      BOOLEAN NOT NULL,
    ver           BIGINT  NOT NULL, -- access tokens with a lower version are stale
    revoked_below BIGINT  NOT NULL, -- sessions with a lower born_ver have ended, and their tokens are revoked
    created_at    BIGINT  NOT NULL,
    updated_at    BIGINT  NOT NULL,
    deleted_at    BIGINT
);
CREATE UNIQUE INDEX users_username ON users (username) WHERE deleted_at IS NULL;

CREATE TABLE sessions (
    id           TEXT   PRIMARY KEY,
    user_id      TEXT   NOT NULL,
    born_ver     BIGINT NOT NULL, -- the column ver of the user at the login
    audience     TEXT   NOT NULL, -- a JSON array
    created_at   BIGINT NOT NULL,
    refreshed_at BIGINT NOT NULL,
    ended_at     BIGINT,
    -- Numbers that recognize a spent refresh token; internal/session/generation.go
    -- describes them.
    current      BIGINT NOT NULL,
    spent        BIGINT NOT NULL,
    spent_at     BIGINT NOT NULL,
    low          BIGINT NOT NULL,
    earlier_low  BIGINT NOT NULL,
    late         BIGINT NOT NULL,
    late_at      BIGINT NOT NULL
);
CREATE INDEX sessions_user_id ON sessions (user_id, id);

CREATE TABLE signing_keys (
    kid            TEXT   PRIMARY KEY,
    algorithm      TEXT   NOT NULL,
    public_key     BYTEA  NOT NULL, -- PKIX
    sealed_key     BYTEA  NOT NULL, -- PKCS 8, encrypted under the master key
    published_at   BIGINT NOT NULL,
    signs_from     BIGINT,
    signs_until    BIGINT,
    verifies_until BIGINT,
    revoked_at     BIGINT
);

CREATE TABLE mac_keys (
    id         BIGINT PRIMARY KEY,
    sealed_key BYTEA  NOT NULL,
    created_at BIGINT NOT NULL
);

-- +goose Down
DROP TABLE mac_keys;
DROP TABLE signing_keys;
DROP TABLE sessions;
DROP TABLE users;
DROP TABLE events;
DROP TABLE head;
DROP TABLE settings;
