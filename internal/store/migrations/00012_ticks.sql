-- +goose Up
-- Time that has passed, counted in ticks: one in ten seconds, however many servers run. A
-- row of this table holds sixty ticks. Rows of other tables are deleted only when their
-- lifetime has passed in ticks too: a clock that is ahead for a moment deletes nothing.
CREATE TABLE ticks (
    period BIGINT PRIMARY KEY, -- counts from 1
    ticks  BIGINT NOT NULL,    -- so many ticks are in this period so far; 60 at the end
    low    BIGINT NOT NULL,    -- the lowest time at a tick of this period
    last   BIGINT NOT NULL     -- the time at the newest tick
);

-- +goose Down
DROP TABLE ticks;
