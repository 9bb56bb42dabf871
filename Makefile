# What people type. `make` alone lists it.
#
# FLEX=1 builds without libtorch, on burn's pure-Rust backend: it needs nothing
# but cargo and a C compiler, and is slower.

.DEFAULT_GOAL := help
.PHONY: help setup libtorch build data train test-build test test-flex test-cuda dist test-dist lint bench bench-gpu chaos fuzz clean-runs

ifdef FLEX
TARGET := target/flex
CARGO_ARGS := --release --target-dir $(TARGET) --no-default-features --features flex,parquet
LIBTORCH_STEP := setup
else
TARGET := target
CARGO_ARGS := --release --target-dir $(TARGET)
LIBTORCH_STEP := libtorch
endif
BIN := $(TARGET)/release

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## check for the tools that the build needs, install what is missing
	@scripts/setup.sh

libtorch: setup ## fetch libtorch into the user's cache (once)
	@scripts/libtorch.sh

build: $(LIBTORCH_STEP) ## build both binaries
	cargo build $(CARGO_ARGS) -p worker -p coordinator

data: build ## fetch Fashion-MNIST
	@$(BIN)/worker data get fashion-mnist --into data/fashion-mnist || \
	  echo "Fashion-MNIST could not be fetched: training will use generated pictures"

train: data ## train AlexNet on two local workers: the whole thing, one command
	@if [ -e data/fashion-mnist/classes.txt ]; then config=configs/alexnet-fashion.toml; else config=configs/alexnet-synthetic.toml; fi; \
	: the two workers share the only GPU of a machine; \
	share=; if [ "$$(nvidia-smi -L 2>/dev/null | grep -c ^GPU)" = 1 ] && [ -z "$(FLEX)" ]; then share="--devices cuda:0,cuda:0"; fi; \
	echo "$(BIN)/coordinator local $$config --workers 2 $$share"; \
	$(BIN)/coordinator local $$config --workers 2 $$share

# What some tests compare with is fetched while the build runs.
test-build: libtorch ## build all tests
	@(python3 tests/python/install.py requirements.txt; python3 tests/python/install.py requirements-records.txt; python3 tests/python/install.py requirements-kubernetes.txt) >/dev/null 2>&1 &
	cargo build --release --workspace
	cargo test --release --workspace --no-run

# Tests wait for a third of their time, for timeouts and for each other.
test: test-build ## all tests
	RUST_TEST_THREADS=$$(($$(nproc) + 1)) timeout 5400 cargo test --release --workspace --no-fail-fast

test-flex: setup ## build without libtorch, train and test on the flex device
	scripts/test-flex.sh

test-cuda: setup ## build with CUDA's libtorch, check what a machine without a GPU can tell
	scripts/test-cuda.sh

dist: build ## an archive that runs where nothing else is installed, and a package: dist/
	TARGET=$(TARGET) scripts/dist.sh

test-dist: build ## train from what `make dist` makes, in a root folder that holds nothing else
	TARGET=$(TARGET) scripts/test-dist.sh

lint: libtorch ## format, clippy, docs, licences
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --quiet
	@if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; else echo "cargo-deny is not installed: licences were not checked"; fi

# For example: make bench BENCH="--only ring,scaling --data DIR"
bench: build ## the same work in PyTorch and here, in turn: a table, benches/RESULTS.md
	python3 benches/run.py $(BENCH)

bench-gpu: build ## the same on a GPU
	python3 benches/run.py --gpu $(BENCH)

# For example: make chaos CHAOS="--faults kill --count 60 --time 0s"
chaos: libtorch ## disturb runs for ten minutes (CHAOS="--time 8h --seed 7" for longer), write chaos.md
	cargo build --release --workspace
	$(BIN)/chaos $(CHAOS)

fuzz: libtorch ## fuzz every decoder for a minute (FUZZ=600 for ten); needs a nightly compiler and cargo-fuzz
	cargo build --release --workspace
	scripts/fuzz.sh $(or $(FUZZ),60)

clean-runs: ## remove all run directories
	rm -rf runs
