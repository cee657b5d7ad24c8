# Root does the work here: `sudo make demo`, `sudo make test`. See README.md.

PYTHON ?= python3
VENV = .venv/bin
# Seconds one test may take before it is ended, and what to run: make test T=tests/store
T ?= tests
export PYTHON

.PHONY: demo test test-long fuzz lint bench vm-test install clean setup-run setup-test setup-vm

demo: setup-run
	@scripts/demo.sh

test: setup-test
	@$(VENV)/python -m pytest -q $(T)

test-long: setup-test
	@$(VENV)/python -m pytest -q -m long --timeout 1800 $(T)

lint: setup-test
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy

# Five million inputs for each parser, or: make fuzz N=1000000 T="nar narinfo" SEED=2
fuzz: T =
fuzz: setup-test
	@$(VENV)/python -m tests.fuzz --executions $(or $(N),5000000) --seed $(or $(SEED),long) --findings .cache/findings $(T)

bench: setup-test
	@$(VENV)/python -m benchmarks.budget $(ARGS)

# Whole machines in qemu: all tests, or make vm-test T="boot limits"; make vm-test ARGS=--list
# (env, and so no shell between make and the driver that would keep signals to itself.)
vm-test: T =
vm-test: setup-vm
	@env PYTHONPATH=vm-tests $(VENV)/python -m driver $(ARGS) $(T)

# make install [PREFIX=/usr/local] [DESTDIR=…] [REPLACE_NIX_DAEMON=1]: the program and its service
PREFIX ?= /usr/local
install:
	@scripts/install.sh --prefix $(PREFIX) $(if $(DESTDIR),--destdir $(DESTDIR)) \
		$(if $(REPLACE_NIX_DAEMON),--replace-nix-daemon)

clean:
	rm -rf demo-store .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup-run:
	@scripts/setup.sh run

setup-test:
	@scripts/setup.sh test

setup-vm:
	@scripts/setup.sh vm
