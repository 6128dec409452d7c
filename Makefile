# What a person does with Starling. Each recipe does all of its own set-up; a second run does only what changed.

CARGO ?= cargo
DEMO_DIR ?= target/demo
export CARGO_TERM_COLOR ?= auto

.PHONY: help setup build demo test lint fuzz bench

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: ## install the Debian packages that are missing (asks sudo when not root)
	@.ci/setup

build: setup
	@$(CARGO) build --locked --workspace --bins

demo: build ## three domains, one film, a player page; Ctrl-C ends everything
	@target/debug/testbed demo --state $(DEMO_DIR)

test: build ## all tests, on real parts
	@.ci/versitygw
	@PATH="$(CURDIR)/target/versitygw/bin:$$PATH" $(CARGO) test --locked --workspace --lib --bins --tests

lint: setup ## formatting, clippy, documentation, what may depend on what
	@.ci/lint

fuzz: setup ## a minute of fuzzing for each target
	@.ci/fuzz 60

bench: build ## the measurements of docs/benchmarks.md
	@$(CARGO) build --locked --release --workspace --bins
	@target/release/testbed bench
