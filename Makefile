# SPDX-License-Identifier: Apache-2.0
# Needs make and bash; `make setup` brings the rest.

PYTHON ?= /usr/bin/python3
VENV   ?= .venv
# The C tests first: what fails there explains what fails above it.
NATIVE  = tests/test_native.py
TESTS  ?= $(NATIVE) $(filter-out $(NATIVE),$(wildcard tests/test_*.py tests/*/test_*.py))
# make test TESTS=tests/test_cli.py ARGS='-k status -x'
ARGS   ?=

export PYTHON VENV

# Labs need root. What sudo starts leaves as little as it can in the checkout, which belongs to its
# user: only build/native-tests.
ifeq ($(shell id -u),0)
AS_ROOT =
else
AS_ROOT = sudo env PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/mint-hypothesis \
	PYTEST_ADDOPTS='-p no:cacheprovider'
endif

MADE = build .mypy_cache .pytest_cache .ruff_cache .hypothesis $(VENV)

.PHONY: help setup kernels demo test check fuzz soak format bench-peers evaluation clean

help:
	@echo 'make setup   install what is missing, build, and put mint into $(VENV)/bin'
	@echo 'make kernels set up, then fetch the kernels that guests boot, unless they are there'
	@echo 'make demo    set up, then show the main job: two Linuxes that talk over shared memory'
	@echo 'make test    set up, then run all tests (or some: TESTS=FILES, ARGS=OPTIONS)'
	@echo 'make check   format, lint, strict types, C warnings as errors'
	@echo 'make fuzz    fuzz every C parser, SECONDS each (default 600); findings in build/fuzz/crashes'
	@echo 'make soak    mixed traffic under random faults for SECONDS; one line of figures'
	@echo 'make format  bring Python and C into the form that make check wants'
	@echo 'make bench-peers  install what mint bench peers compares with'
	@echo 'make evaluation   measure everything, write docs/evaluation/ (half an hour or more; on a quiet machine)'
	@echo 'make clean   remove what these made; Debian packages stay'

setup:
	@bash scripts/setup.sh

# Into the cache of whoever runs labs, once: later it takes a quarter of a second and no network.
# Nodes of kind netns do without, so it is no error that there are none.
kernels: setup
	@$(AS_ROOT) $(VENV)/bin/mint kernel install || \
		echo 'make: nodes of kinds uml and qemu lack a kernel; the rest goes on' >&2

demo: kernels
	@$(AS_ROOT) $(VENV)/bin/python -m mint_vni.demo

test: kernels
	@$(AS_ROOT) $(VENV)/bin/python -m pytest $(TESTS) $(ARGS)

SECONDS ?= 600

fuzz: setup
	@$(VENV)/bin/python tests/test_fuzz.py $(SECONDS)

soak: setup
	@$(AS_ROOT) $(VENV)/bin/python tests/test_soak.py $(SECONDS)

check: setup
	@bash scripts/check.sh

format: setup
	@bash scripts/format.sh

# What `mint bench peers` compares with; none of it is needed for anything else.
bench-peers: setup
	@bash scripts/bench-peers.sh

# The report that the repository holds. Nothing else should run meanwhile.
evaluation: setup
	@$(AS_ROOT) nice -n -19 $(VENV)/bin/mint bench report docs/evaluation --repetitions 3 --seconds 0.5

clean:
	@# What make test made as root, by sudo, needs root to go.
	rm -rf $(MADE) 2>/dev/null || $(AS_ROOT) rm -rf $(MADE)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
