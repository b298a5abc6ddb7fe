# Every target sets up what it needs: `make demo` or `make test` is the only command to type on a fresh machine.

MAKEFLAGS += --no-print-directory

emulated = aarch64-unknown-linux-musl

.PHONY: help setup demo test test-full lint bench bench-kernels cuda-kit test-cuda bench-cuda clean

help:
	@echo 'make demo        compile models; complete Python and embed sentences with them'
	@echo 'make test        everything that must hold: tests, formatting, lints, documentation'
	@echo 'make test-full   the same in release, with longer fuzzing and hundreds of drawn models'
	@echo 'make bench       how long the models take to compile, and how fast two of them run'
	@echo 'make bench-kernels   how fast single kernels are, over the shapes of three models'
	@echo 'make test-cuda   whether the GPU of this machine computes what it should; without one it says so'
	@echo 'make bench-cuda  how fast it does, as shares of its limits and beside PyTorch'
	@echo 'make cuda-kit    what these two need, in a folder for a machine without Rust and network'
	@echo 'make lint        formatting, lints and documentation alone'
	@echo 'make setup       install what building needs, and nothing else'
	@echo 'make clean       remove what was built'

setup:
	@tools/setup.sh

demo:
	@tools/setup.sh --download
	@examples/demo/run.sh

# The suite runs the two commands, so they are built before it; the runtime also for an architecture that it emulates. Code for GPUs is assembled by ptxas.
test:
	@tools/setup.sh --download --lint --emulate --assemble
	@tools/fetch_minilm.sh >/dev/null
	@tools/setup.sh --browse
	cargo fmt --all --check
	cargo build --bins -p xfc-cli -p xfc-runtime
	cargo build --bin xfrun -p xfc-runtime --target $(emulated)
	cargo test --workspace
	@$(MAKE) lint

test-full:
	@tools/setup.sh --download --lint --emulate --assemble
	@tools/fetch_minilm.sh >/dev/null
	@tools/setup.sh --browse
	cargo build --release --bins -p xfc-cli -p xfc-runtime
	cargo build --bin xfrun -p xfc-runtime --target $(emulated)
	XFC_FUZZ_SECONDS=60 XFC_SEEDS=60 cargo test --release --workspace
	@$(MAKE) lint

lint:
	@tools/setup.sh --lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' cargo doc --quiet --workspace --no-deps
	tools/check_portable.sh
	tools/check_dependencies.sh

# Both builds say the same, so that the second builds nothing.
bench: export XFC_COMMIT := $(shell git rev-parse --short HEAD 2>/dev/null)
bench:
	@tools/setup.sh
	@tools/bench_compile.sh
	@tools/bench_speed.sh
	@echo 'single kernels over the shapes of three models: make bench-kernels'

# About ten minutes; `make bench-kernels ONLY=attention` for some of them.
bench-kernels:
	@tools/setup.sh
	cargo bench -p xfc-bench -- $(ONLY)

cuda-kit:
	@tools/setup.sh
	@tools/cuda/kit.sh

# Elsewhere than where the kit was built they need it in target/cuda-kit, Python and a driver. `make test-cuda ARGUMENTS='--case llama3'`.
test-cuda:
	@tools/cuda/cuda.sh check $(ARGUMENTS)

bench-cuda:
	@tools/cuda/cuda.sh bench $(ARGUMENTS)

clean:
	cargo clean
