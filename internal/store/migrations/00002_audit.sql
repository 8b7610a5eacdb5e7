-- +goose Up
-- The security record: what users, admins and the operator did, and refused calls. An
-- id is the record's time in microseconds and a random part, in hexadecimal, so the
-- order of ids is the order of time.
CREATE TABLE audit (
    id         TEXT    PRIMARY KEY,
    type       TEXT    NOT NULL,
    success    BOOLEAN NOT NULL,
    reason     TEXT    NOT NULL,
    actor_id   TEXT    NOT NULL,
    user_id    TEXT    NOT NULL,
    session_id TEXT    NOT NULL,
    kid        TEXT    NOT NULL,
    source     TEXT    NOT NULL,
    detail     TEXT    NOT NULL,
    count      BIGINT  NOT NULL
);

-- +goose Down
DROP TABLE audit;
