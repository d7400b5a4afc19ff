# The one door. Everything below runs the same here as where changes are checked.
#
#   make test        all that must hold: installs what tests run, then checks, builds and tests
#   make check       only what needs no peer: format, lints, documentation
#   make test-full   the same with the release build, many more crashes, a longer soak, all peers,
#                    licences, and fuzzing
#   make images      the programs of images for every architecture, run under an emulator
#   make fuzz        every fuzz target for FUZZ_SECONDS, by nightly Rust
#   make audit       licences, banned crates, and known vulnerabilities (asks the network)
#   make bench       measures a release build against its peers
#   make test-deps   installs the programs that tests run (Debian)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# Outside the clone, so that a fresh clone builds on what an earlier one left.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/larder/target

# How many times the program is killed in mid-fill.
export LARDER_CRASH_ROUNDS ?= 25

# How many times a replica, PostgreSQL or S3 is killed under load.
export LARDER_SHARED_ROUNDS ?= 5

# How many requests the store answers that is much too small for them.
export LARDER_TRACE_REQUESTS ?= 10000

# How long the program is soaked in failures, in seconds.
export LARDER_SOAK_SECONDS ?= 60

# How long each fuzz target runs, in seconds of one processor.
export FUZZ_SECONDS ?= 600

.PHONY: check test test-full images fuzz bench test-deps tools deny fmt lint doc build test-crates licences audit

test: test-deps check build test-crates

check: fmt lint doc

test-deps:
	scripts/test-deps

# What rust-toolchain.toml names, where rustup did not install it by itself.
tools:
	cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	cargo clippy --version >/dev/null 2>&1 || rustup component add clippy

fmt: tools
	cargo fmt --all -- --check

lint: tools
	cargo clippy --locked --workspace --all-targets -- -D warnings

doc: tools
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

# The whole-program tests run the program that is built here. All at once, so that every dependency
# is built with one set of features, once.
build:
	cargo build --locked --workspace --all-targets

test-crates: build
	scripts/test-crates

# Nothing is skipped for want of a peer, and nothing is run twice.
test-full: export LARDER_ALL_PEERS = 1
test-full: export LARDER_STRICT = 1
test-full: export LARDER_AGENT_PAIRS = 20
test-full: test-deps check licences
	cargo build --locked --release --package larder
	LARDER_BIN="$(CARGO_TARGET_DIR)/release/larder" LARDER_CRASH_ROUNDS=300 LARDER_SHARED_ROUNDS=20 \
		LARDER_TRACE_REQUESTS=200000 LARDER_SOAK_SECONDS=600 \
		scripts/test-crates
	$(MAKE) images
	$(MAKE) fuzz

# The programs of images, for every architecture, run under an emulator where it is another one.
ARCHITECTURES ?= amd64 arm64 ppc64le
ZIG := $(dir $(CARGO_TARGET_DIR))zig
images: test-deps
	cargo zigbuild --help >/dev/null 2>&1 || cargo install --locked cargo-zigbuild
	[ -x "$(ZIG)/bin/python-zig" ] || { python3 -m venv "$(ZIG)" && "$(ZIG)/bin/pip" install --quiet ziglang; }
	CARGO_ZIGBUILD_ZIG_PATH="$(ZIG)/bin/python-zig" scripts/image-programs $(ARCHITECTURES)
	scripts/try-image-programs $(ARCHITECTURES)

# Our code is safe Rust, so that a sanitizer would only cost time.
FUZZ := cargo +nightly fuzz
fuzz:
	cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	$(FUZZ) build --sanitizer none --features fuzzer --target-dir "$(CARGO_TARGET_DIR)/fuzz"
	$(FUZZ) list | xargs -P "$$(nproc)" -I TARGET scripts/fuzz-target TARGET

deny:
	cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny

licences: deny
	cargo deny --locked check bans licenses sources

audit: deny
	cargo deny --locked check

bench:
	cargo build --locked --release --package larder
	"$(CARGO_TARGET_DIR)/release/larder" bench
