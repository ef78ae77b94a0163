# Thin over cargo and the scripts it names; `make` alone prints what there is.
# What needs root, Podman and CRIU runs in the lab host where the machine is not fit for them (tests/lab/README.md).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

CARGO := cargo
LOCKED := $(if $(CI),--locked)
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
GOLDEN ?= wordpress
PREFIX ?= /usr
DESTDIR ?=
# What `install` and `deb` install, when it is not what `build` has built.
PROGRAM ?= build/demo-multiplexer

# Put before a command: runs it in the lab where one is needed, else here.
ON_HOST = $$(! tests/lab/needed >/dev/null || echo tests/lab/exec)

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: init build ## from nothing to a shop that answers: build, snapshot, serve, acquire one (PORT, PRESTASHOP_SRC, GOLDEN)
	@podman/demo

.PHONY: infra-up
infra-up: init build ## start Valkey, NATS, MariaDB and Caddy for development, here or in the lab
	@if tests/lab/needed; then tests/lab/up; fi
	@host=$(ON_HOST); $$host podman/infra up

.PHONY: infra-down
infra-down: ## end them and remove their files
	@host=$(ON_HOST); $$host podman/infra down

.PHONY: dev
dev: build ## serve on all of them and acquire one shop over HTTPS through Caddy (after infra-up; HTTPS_PORT=8443)
	@STACK=full podman/demo

.PHONY: init
init: ## install what this machine lacks (apt-get or dnf)
	@podman/host-packages

.PHONY: build
build: ## build the release binary: build/demo-multiplexer
	$(CARGO) build $(LOCKED) --release
	@mkdir -p build
	@# By rename: a daemon that runs from the old file keeps it.
	@cp $(TARGET_DIR)/release/demo-multiplexer build/.demo-multiplexer.new
	@mv build/.demo-multiplexer.new build/demo-multiplexer

.PHONY: lab
lab: build ## bring up the lab host, where this machine needs one; the binary inside is the one just built
	@if tests/lab/needed; then tests/lab/up; else echo "this machine needs no lab"; fi

.PHONY: golden
golden: lab ## build a golden and take its snapshot (GOLDEN=wordpress)
	@host=$(ON_HOST); $$host build/demo-multiplexer --recipe-dir "$$PWD/podman" snapshot create $(GOLDEN)

.PHONY: install
install: $(if $(filter command environment,$(origin PROGRAM)),,build) ## install program, recipes, units and settings (DESTDIR, PREFIX=/usr)
	@systemd/install "$(DESTDIR)" "$(PREFIX)" "$(PROGRAM)"

.PHONY: uninstall
uninstall: ## remove what install has installed, changed settings aside
	@systemd/install --remove "$(DESTDIR)" "$(PREFIX)"

# Times in the package are the commit's, so the same commit gives the same package.
.PHONY: deb
deb: target/tools/bin/cargo-deb ## build/demo-multiplexer_*.deb, a package for Debian 13 (cargo-deb)
	@rm -rf build/package build/demo-multiplexer_*.deb
	@$(MAKE) --no-print-directory install DESTDIR=build/package PREFIX=/usr
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 0) target/tools/bin/cargo-deb --no-build --output build $(DEB_FLAGS)
	@rm -rf build/package

# Hardly optimized: it is built for longer than it runs.
target/tools/bin/cargo-deb:
	@CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
	$(CARGO) install --quiet --locked cargo-deb --version 3.8.0 --root target/tools

.PHONY: lint
lint: ## formatting, clippy, rustdoc, shellcheck; warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy $(LOCKED) --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(LOCKED) --no-deps --all-features --document-private-items
	grep -rlE '^#!(/usr)?/bin/(env )?(ba)?sh' $(wildcard .ci fuzz/run podman systemd tests) | xargs shellcheck -x -P SCRIPTDIR

# The advisories are a git repository on the network, so this is no part of `make test`.
.PHONY: audit
audit: ## licences, sources and known holes of all dependencies (cargo-deny; needs the network)
	@test -x target/tools/bin/cargo-deny || $(CARGO) install --quiet --locked cargo-deny --version 0.20.2 --root target/tools
	@target/tools/bin/cargo-deny --all-features --config .deny.toml check --hide-inclusion-graph licenses bans sources
	@target/tools/bin/cargo-deny --all-features --config .deny.toml check advisories

.PHONY: fuzz
fuzz: ## look for inputs that break a promise, each target for FUZZ_SECONDS (60)
	@fuzz/run

.PHONY: test
test: ## all tests: lint, unit, the API's contract, integration with Podman and CRIU, pages in a browser, the promise of 500 ms
	@tests/run lint unit contract lab integration browser promise

.PHONY: screenshots
screenshots: ## docs/screenshots: the pages as they are now, in a real browser on a real golden
	@tests/run screenshots

.PHONY: test-vm
test-vm: deb ## the package on a stock Debian 13 in an emulated machine; slow, so no part of `make test`
	@tests/vm/run build/demo-multiplexer_*.deb

.PHONY: soak
soak: ## 2,000 visitors one after the other (SOAK_CYCLES), 10,000 status streams: nothing may grow; part of no other target
	@tests/run soak

.PHONY: memcheck
memcheck: ## unit tests of what is unsafe, in valgrind; part of no other target
	@tests/run memcheck

.PHONY: sanitize
sanitize: ## the same tests in builds with the address and the thread sanitizer; part of no other target
	@tests/run sanitize

.PHONY: test-coverage
test-coverage: ## the same tests with a report of lines covered (cargo-llvm-cov)
	@command -v cargo-llvm-cov >/dev/null || $(CARGO) install --locked cargo-llvm-cov
	@source <($(CARGO) llvm-cov show-env --export-prefix); $(CARGO) llvm-cov clean --workspace; \
	tests/run unit integration; $(CARGO) llvm-cov report --summary-only

.PHONY: bench
bench: ## all benches; a report with plots in build/bench; fails when a median acquire exceeds 500 ms (GOLDENS)
	@tests/run bench

.PHONY: bench-report
bench-report: ## copy the last report to docs/bench
	@test -e build/bench/README.md || { echo "there is no report yet: make bench"; exit 1; }
	@mkdir -p docs/bench
	@rm -f docs/bench/*
	@cp build/bench/README.md build/bench/*.svg docs/bench/

.PHONY: bench-gate
bench-gate: ## this program against an earlier one, turn by turn; fails when it is more than 10 % slower (BASE)
	@tests/run bench-gate

.PHONY: bench-routes
bench-routes: ## what a route costs in Caddy and in the built-in proxy; needs caddy
	cargo bench --all-features --bench routes

.PHONY: clean-all
clean-all: ## remove everything that was built: binaries, the lab with its state, its cached root
	@tests/lab/down --purge-all
	rm -rf build $(TARGET_DIR)
