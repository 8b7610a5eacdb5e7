-- +goose Up
-- Numbers that count the repeats of refresh tokens; internal/session/generation.go
-- describes them.
ALTER TABLE sessions ADD COLUMN repeated BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN run BIGINT NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE sessions DROP COLUMN run;
ALTER TABLE sessions DROP COLUMN repeated;
