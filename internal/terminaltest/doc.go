// Package terminaltest is a kit for tests: a terminal at which a test types, and reads what the
// terminal shows. Only Linux has the kit.
package terminaltest
