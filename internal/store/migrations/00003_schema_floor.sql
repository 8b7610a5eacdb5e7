-- +goose Up
-- The lowest version of a program that can work with this schema; the newest migration
-- that a program has counts as its version. A migration that removes something that
-- older programs need raises the value (docs/migrations.md).
INSERT INTO settings (name, value) VALUES ('schema_floor', '3');

-- +goose Down
DELETE FROM settings WHERE name = 'schema_floor';
