# `make help` says what there is. `make test` is everything, and what CI runs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # the steps would only fight for the same cores
MAKEFLAGS += --no-print-directory

# Tools are built here from pinned modules, and buf finds its plugins here.
export PATH := $(CURDIR)/.bin:$(PATH)

# Go then finds in its cache what was compiled from the same files in another folder.
export GOFLAGS := $(strip $(GOFLAGS) -trimpath)

# Inputs for each target, and not a time: at its end a run that is interrupted counts as failed.
FUZZTIME ?= 20000x
IMAGE := proto/watchword.binpb
PLUGINS := .bin/protoc-gen-go .bin/protoc-gen-go-grpc .bin/protoc-gen-connect-go .bin/protoc-gen-grpc-gateway

title = @echo "== $(1)"
patiently := "$(CURDIR)/scripts/patiently.sh"
first_time = echo "compiling $(@F): some minutes the first time" >&2

##@ Use

.PHONY: help
help: ## Say what there is
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-zA-Z_.\/-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

.PHONY: run
run: .bin/watchword ## Run the server on SQLite; flags in ARGS="…"
	@exec .bin/watchword serve $(ARGS)

.PHONY: build
build: .bin/watchword .bin/watchword-ext-authz ## Build the server, the command line and the program for Envoy into .bin

.PHONY: tools
tools: .bin/buf .bin/cyclonedx-gomod .bin/grpcurl .bin/staticcheck $(PLUGINS) ## Build the pinned tools into .bin

##@ Change

.PHONY: check
check: ## The quick loop: format, vet and unit tests; needs PostgreSQL and no other tools
	$(call title,quick check)
	@$(MAKE) format-check vet
	@$(patiently) "go test" go test -short ./...

.PHONY: fmt
fmt: .bin/buf ## Format Go and proto files
	@$(GO_FILES) | xargs -0 gofmt -w
	@buf format -w

.PHONY: generate
generate: .bin/buf $(PLUGINS) ## Generate gen/ from the proto files
	@buf generate
	@cp proto/watchword/v1/access.proto $(NOTES)/third_party/watchword/v1/access.proto
	@for dir in $(EXAMPLES); do (cd $$dir && buf generate) || exit 1; done
	@$(MAKE) api-page

.PHONY: api-page
api-page: .bin/buf ## Write docs/api.md from the comments of the proto files
	@buf build --as-file-descriptor-set -o - | go run ./scripts/apidoc docs/api.md

.PHONY: configuration-page
configuration-page: ## Write the tables of docs/configuration.md anew; the meanings stay as written
	@go test -count=1 ./internal/cli -run '^TestConfigurationPage$$' -update

.PHONY: contract-image
contract-image: .bin/buf ## For a release only: make its proto files what `buf breaking` compares with
	@if [ -z "$(RELEASE)" ]; then \
		echo "This makes the proto files as they are now the last released contract: what was broken"; \
		echo "since the release before goes unnoticed from then on. It belongs to a release alone:"; \
		echo "  make contract-image RELEASE=v1.2.3"; \
		exit 1; \
	fi
	@buf build --exclude-source-info -o $(IMAGE)

##@ Test

.PHONY: test
test: prerequisites tools ## Everything below, in this order; installs what it needs
	@for step in $(STEPS); do $(MAKE) $$step || exit 1; done
	@echo "== everything passed"

# The race detector watches all code but SQLite's own, C code translated to Go. SQLite's memory
# lies outside of Go's heap, where the race detector finds nothing. To watch SQLite's code, and to
# check the pointers of the translation, took a third of the processor time of tests with SQLite.
# Nor does the race detector watch kong and the regular expressions, with which one goroutine reads
# the command line: a third of the processor time of the tests of internal/cli.
# The step vet has vetted the tests, so go test leaves out vet.
RACE := -race -vet=off -gcflags='modernc.org/...=-d=checkptr=0' -gcflags='modernc.org/sqlite/lib=-race=false' \
	-gcflags='github.com/alecthomas/kong=-race=false' -gcflags='regexp/...=-race=false'
# Packages tested at once: tests also wait, so one more than there are processors. The package
# e2e takes longest, and so is the first.
AT_ONCE := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

STEPS := format-check vet vet-platforms staticcheck proto-check generate-check tidy-check test-go test-fuzz test-examples test-node test-python test-deploy

.PHONY: prerequisites
prerequisites: ## See to it that Go, a C compiler, Node.js, Python, PostgreSQL and PgBouncer are here
	$(call title,prerequisites)
	@$(patiently) prerequisites scripts/prerequisites.sh

.PHONY: format-check
format-check: ## gofmt
	$(call title,gofmt)
	@unformatted=$$($(GO_FILES) | xargs -0 gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "run 'make fmt' for:"; echo "$$unformatted"; exit 1; fi

.PHONY: vet
vet: ## go vet
	$(call title,go vet)
	@$(patiently) "go vet" go vet ./...
	@$(call in-each,$(MODULES),go vet,go vet ./...)

# The other systems on which programs with the package authn run, and the server may.
PLATFORMS := windows/amd64 darwin/arm64 freebsd/amd64 linux/arm64 linux/386

.PHONY: vet-platforms
vet-platforms: ## go vet, tests included, for the other systems
	$(call title,go vet for $(PLATFORMS))
	@for platform in $(PLATFORMS); do \
		GOOS=$${platform%/*} GOARCH=$${platform#*/} CGO_ENABLED=0 $(patiently) "go vet for $$platform" go vet ./... || exit 1; \
	done

.PHONY: staticcheck
staticcheck: .bin/staticcheck ## staticcheck
	$(call title,staticcheck)
	@$(patiently) staticcheck staticcheck ./...
	@$(call in-each,$(MODULES),staticcheck,staticcheck ./...)

.PHONY: proto-check
proto-check: .bin/buf ## Lint and format of the proto files; nothing released is broken
	$(call title,buf lint; buf format; buf breaking)
	@buf lint
	@buf format -d --exit-code
	@buf breaking --against $(IMAGE)
	@cd $(NOTES) && buf lint && buf format -d --exit-code

.PHONY: generate-check
generate-check: .bin/buf $(PLUGINS) ## gen/ and docs/api.md are what the proto files generate
	$(call title,generated code)
	@for dir in . $(EXAMPLES); do ( \
		cd $$dir; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
		buf generate -o "$$tmp"; \
		diff -r gen "$$tmp/gen" || { echo "$$dir/gen is not what the proto files generate: run 'make generate'"; exit 1; } \
	) || exit 1; done
	@cmp proto/watchword/v1/access.proto $(NOTES)/third_party/watchword/v1/access.proto
	@tmp=$$(mktemp); trap 'rm -f "$$tmp"' EXIT; \
	buf build --as-file-descriptor-set -o - | go run ./scripts/apidoc "$$tmp"; \
	diff docs/api.md "$$tmp" || { echo "docs/api.md is not what the proto files generate: run 'make api-page'"; exit 1; }

.PHONY: tidy-check
tidy-check: ## go.mod and go.sum are tidy
	$(call title,go mod tidy -diff)
	@$(patiently) "go mod tidy" go mod tidy -diff
	@$(call in-each,$(MODULES) deploy/check/opa tools/clients,go mod tidy,go mod tidy -diff)

.PHONY: test-go
test-go: .bin/grpcurl .bin/buf .bin/protoc-gen-go .bin/protoc-gen-go-grpc ## Unit and end-to-end tests under the race detector
	$(call title,go test -race)
	@$(patiently) "go test -race" go test $(RACE) -p $(AT_ONCE) -count=1 -timeout 25m ./internal/e2e ./...

.PHONY: test-fuzz
test-fuzz: ## Every fuzz target, FUZZTIME inputs each (20000x)
	$(call title,go test -fuzz: $(FUZZTIME) for each target)
	@grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' authn internal | sort | \
	while IFS=: read -r file func; do \
		$(patiently) "$${func#func }" go test -vet=off -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")"; \
	done

.PHONY: test-examples
test-examples: ## The example services, each a module of its own
	$(call title,$(EXAMPLES): go test -race)
	@$(call in-each,$(EXAMPLES),go test -race,go test -race -vet=off -count=1 -timeout 15m ./...)

.PHONY: test-node
test-node: .bin/watchword .bin/notes ## The Node.js client against the real binaries
	$(call title,clients/node: npm test)
	@cd clients/node && $(patiently) "npm ci" npm ci --no-audit --no-fund --loglevel=error && \
		WATCHWORD_BIN=$(CURDIR)/.bin/watchword NOTES_BIN=$(CURDIR)/.bin/notes $(patiently) "npm test" npm test

# Debian's Python, for the packages python3-grpcio and python3-protobuf.
PYTHON ?= /usr/bin/python3

.PHONY: test-python
test-python: .bin/watchword ## The Python guard and client against the real binary
	$(call title,clients/python: python3 -m unittest)
	@cd clients/python && WATCHWORD_BIN=$(CURDIR)/.bin/watchword $(patiently) "python3 -m unittest" $(PYTHON) -B -m unittest

.PHONY: test-deploy
test-deploy: ## The files of deploy/, by the tools that read them; a module of its own
	$(call title,deploy/check: go test)
	@cd deploy/check && $(patiently) "go test" go test -vet=off -count=1 ./...

.PHONY: test-slow
test-slow: .bin/grpcurl .bin/spire-agent .bin/spire-server ## The tests that wait for minutes, TestSlow…, and those of foreign libraries; `make test` leaves them out
	$(call title,go test -race: the slow tests)
	@$(patiently) prerequisites scripts/prerequisites.sh --slow
	@cd clients/verify/node && $(patiently) "npm ci" npm ci --no-audit --no-fund --loglevel=error
	@cd bench && $(patiently) "go test -race in bench" go test -race -count=1 -timeout 20m ./...
	@cd deploy/check/opa && $(patiently) "go test in deploy/check/opa" go test -count=1 ./...
	@cd deploy/check && WATCHWORD_SLOW=1 $(patiently) "go test in deploy/check" go test -count=1 -run '^TestSlow' ./...
	@WATCHWORD_SLOW=1 $(patiently) "go test -race" go test $(RACE) -count=1 -timeout 60m -run '^TestSlow' ./...

.PHONY: test-upgrade
test-upgrade: ## Replace an earlier commit by the present program and back, under load; part of test-slow, needs the whole history
	$(call title,upgrade and roll back)
	@WATCHWORD_SLOW=1 $(patiently) "go test" go test -count=1 -timeout 30m -v -run '^TestSlow(Upgrade|EarlierProgram)' ./internal/e2e | grep -v '^ *time='

##@ Release

.PHONY: release
release: .bin/cyclonedx-gomod ## Archives, SBOMs and SHA256SUMS in release/; VERSION=v1.2.3 names the version
	$(call title,release $(VERSION))
	@GOTOOLCHAIN=$(shell sed -n 's/^FROM golang:\([0-9.]*\).*/go\1/p' Dockerfile) SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)} $(patiently) "compiling for every platform" \
		go run ./scripts/release -version "$(VERSION)" -sbom .bin/cyclonedx-gomod $(ARGS)
	@cat release/SHA256SUMS

##@ Measure

.PHONY: bench
bench: ## Every promise of speed beside its limit, in twenty minutes; quicker by ARGS=-quick
	@cd bench && go run . $(ARGS)

# The rest is not for typing.

NOTES := examples/notes
EXAMPLES := $(NOTES) examples/connect examples/gateway
# The modules beside the main one. in-each runs a command in each of some modules: the modules, a
# name for the command, the command.
MODULES := $(EXAMPLES) bench deploy/check
in-each = for dir in $(1); do (cd $$dir && $(patiently) "$(2) in $$dir" $(3)) || exit 1; done
GO_FILES := find . -name node_modules -prune -o -name '*.go' -print0

# The version that a program shows: of this clone, unless VERSION names another one. The tag
# grpcnotrace leaves out golang.org/x/net/trace, which Watchword does not use: 0.8 MiB of memory at rest.
VERSION ?= $(shell scripts/version.sh)
STAMP = -tags grpcnotrace -ldflags "-X github.com/watchword-auth/watchword/internal/version.stamped=$(VERSION)"

.PHONY: FORCE

.bin/watchword .bin/watchword-ext-authz: FORCE # go build knows what has changed
	@[ -e $@ ] || $(first_time)
	@$(patiently) "compiling $(@F)" go build $(STAMP) -o $@ ./cmd/$(@F) >&2

.bin/notes: FORCE
	@cd $(NOTES) && $(patiently) "compiling $(@F)" go build -o ../../$@ ./cmd/notes

TOOL_buf := github.com/bufbuild/buf/cmd/buf
TOOL_cyclonedx-gomod := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod
TOOL_grpcurl := github.com/fullstorydev/grpcurl/cmd/grpcurl
TOOL_protoc-gen-go-grpc := google.golang.org/grpc/cmd/protoc-gen-go-grpc
TOOL_staticcheck := honnef.co/go/tools/cmd/staticcheck

.bin/buf .bin/cyclonedx-gomod .bin/grpcurl .bin/protoc-gen-go-grpc .bin/staticcheck: tools/go.mod tools/go.sum
	@$(first_time)
	@cd tools && $(patiently) "compiling $(@F)" go build -o ../$@ $(TOOL_$(@F)) >&2
	@touch $@

# SPIRE is for one slow test alone. A module of its own keeps the versions of SPIRE's many dependencies apart.
.bin/spire-agent .bin/spire-server: tools/spire/go.mod tools/spire/go.sum
	@$(first_time)
	@cd tools/spire && $(patiently) "compiling $(@F)" go build -o ../../$@ github.com/spiffe/spire/cmd/$(@F) >&2
	@touch $@

# It writes for the protobuf runtime that the main module asks for.
.bin/protoc-gen-go: go.mod go.sum
	@$(first_time)
	@$(patiently) "compiling $(@F)" go build -o $@ google.golang.org/protobuf/cmd/protoc-gen-go >&2
	@touch $@

# The plugins of an example have the version of the runtime that the example asks for.
TOOL_protoc-gen-connect-go := connectrpc.com/connect/cmd/protoc-gen-connect-go
TOOL_protoc-gen-grpc-gateway := github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway
.bin/protoc-gen-connect-go: IN := examples/connect
.bin/protoc-gen-connect-go: examples/connect/go.mod examples/connect/go.sum
.bin/protoc-gen-grpc-gateway: IN := examples/gateway
.bin/protoc-gen-grpc-gateway: examples/gateway/go.mod examples/gateway/go.sum
.bin/protoc-gen-connect-go .bin/protoc-gen-grpc-gateway:
	@$(first_time)
	@cd $(IN) && $(patiently) "compiling $(@F)" go build -o $(CURDIR)/$@ $(TOOL_$(@F)) >&2
	@touch $@
