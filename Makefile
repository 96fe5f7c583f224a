# Every target works from a clean clone: it does its own set-up. `make` alone shows this list.
PYTHON := .venv/bin/python
SOURCES := PYTHONPATH=proto:services:shared:tests
CRI_SOCKET ?= /run/criw/criw.sock

.PHONY: help setup demo up test lint format proto bench

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## install what is missing: Debian packages (as root) and .venv
	@scripts/setup.sh

demo: setup  ## run a pod from a registry to its removal, step by step; KEEP=1 leaves it running
	$(SOURCES):. $(PYTHON) -m demo.demo

up: setup  ## start the crew on this host, until Ctrl-C
	.venv/bin/criwctl up

test: setup  ## lint, types and all tests (system tests need root)
	@scripts/lint.sh
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup  ## ruff and mypy
	@scripts/lint.sh

format: setup  ## rewrite the code as ruff wants it
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

proto: setup  ## generate proto/criw_proto from the *.proto files
	scripts/proto.sh

bench: setup  ## time a pod's life against CRI_SOCKET with an image that has a shell: make bench IMAGE=…
	$(SOURCES):. $(PYTHON) -m benchmarks.latency --endpoint $(CRI_SOCKET) --image $(IMAGE)
