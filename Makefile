# Every target sets up what it needs on a machine with Python (3.11 or later) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A stamp stands for an environment that is up to date with the files that describe it.
DEMO_STAMP := $(VENV)/.demo-installed
DEV_STAMP := $(VENV)/.dev-installed
DESCRIPTION := pyproject.toml constraints.txt Makefile
PYTEST_ARGS ?=
BENCH ?=

# The lowest supported versions live in an environment of their own, of Python 3.11 or 3.12: numpy 1.26 knows no later.
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed
OLDEST_TESTS := $(addprefix tests/test_,$(addsuffix .py, \
	halton halton_sampler halton_workers indices coordinates rounds recovery trials trials_from_study \
	optimizer_space next_round new_bounds exploitation tracking build_optimizer warmup clipping weight_ema \
	weight_ema_users batch_norm checkpoints evaluation recorder stack support divergence gradient_norms throughput \
	throughput_text stability instability recommended training_snapshot batch_size_probe ghost_batch_norm \
	resumable_loader host_parity))

.PHONY: help demo test test-oldest test-slow lint bench test-system-packages clean

help:
	@echo "make demo                  run the quickstart and write its page"
	@echo "make test                  run the tests (PYTEST_ARGS=... goes to pytest)"
	@echo "make test-oldest           run the sampler and callback tests on the lowest supported versions"
	@echo "make test-slow             run the long simulations and kill tests too"
	@echo "make lint                  check style, types and import rules"
	@echo "make bench                 run the benchmarks and print one table (BENCH=bench_sampler selects)"
	@echo "make test-system-packages  install the Debian packages that some tests need"

$(DEMO_STAMP): $(DESCRIPTION)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

$(DEV_STAMP): $(DESCRIPTION)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(DEMO_STAMP) $@

demo: $(DEMO_STAMP)
	$(BIN)/python examples/quickstart.py

test: $(DEV_STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(PYTEST_ARGS)

$(OLDEST_STAMP): pyproject.toml constraints-oldest.txt Makefile
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt \
		-e '.[optuna,lightning]' lightning rich hypothesis pytest pytest-timeout pytest-xdist
	touch $@

test-oldest: $(OLDEST_STAMP)
	$(OLDEST)/bin/python -m pytest -n auto --dist worksteal -m "not slow" $(OLDEST_TESTS) $(PYTEST_ARGS)

test-slow: $(DEV_STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow $(PYTEST_ARGS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(DEV_STAMP)
	$(BIN)/python tests/benchmarks $(BENCH)

test-system-packages:
	$(if $(filter 0,$(shell id -u)),,sudo) apt-get update
	$(if $(filter 0,$(shell id -u)),,sudo) apt-get install -y chromium postgresql

clean:
	rm -rf $(VENV) $(OLDEST) runs
