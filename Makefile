# `make` alone says what there is. Everything runs in .venv, which is made when it is missing or outdated.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test check fmt bench load test-e2e test-systemd test-chaos test-packages soak fuzz deb wheel apt-deps clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
PYTEST := $(BIN)/python -m pytest
# How many tests run at a time.
TESTERS ?= $(shell nproc 2>/dev/null || echo 2)

# The first Python that will do: 3.11 or newer and able to make an environment; else the first that is new enough.
# `make run PYTHON=/path/to/python` overrides it.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
CANDIDATES := python3.11 python3 python3.12 python3.13 python3.14 /usr/bin/python3
ifeq ($(origin PYTHON),undefined)
PYTHON = $(shell \
	for python in $(CANDIDATES); do \
		"$$python" -c '$(NEW_ENOUGH); import ensurepip, venv' 2>/dev/null && { echo "$$python"; exit; }; \
	done; \
	for python in $(CANDIDATES); do \
		"$$python" -c '$(NEW_ENOUGH)' 2>/dev/null && { echo "$$python"; exit; }; \
	done; \
	echo python3)
endif

# An environment that was moved here, or whose Python is gone, is made anew.
ifneq ($(shell $(BIN)/python -c '' 2>/dev/null && cat $(VENV)/.made-in 2>/dev/null),$(CURDIR))
FRESH := fresh
endif

help:
	@echo 'make run         a tunnel, both ends and a sample service on this machine; prints the page to open'
	@echo 'make test        unit, fuzz and integration tests'
	@echo 'make check       format, lint, types, imports and the tests: what CI runs'
	@echo 'make fmt         put the format right'
	@echo 'make test-e2e    a real browser, MCP clients, curl, nginx, Caddy, wrk (make apt-deps gets them on Debian)'
	@echo 'make test-systemd  the units in a real systemd, booted beside this machine (root; make apt-deps)'
	@echo 'make test-chaos  cut, blackholed, killed and stopped daemons; SEED=N replays a run'
	@echo 'make deb         dist/tunneld_*.deb, for Debian 12; make wheel: dist/tunneld-*.whl'
	@echo 'make test-packages  both of them, installed, upgraded, removed; as root'
	@echo 'make soak        300 streams and a fault every few seconds, every byte counted; MINUTES=10, SEED=N'
	@echo 'make fuzz        ten minutes of bytes made to break the parsers, guided by coverage; MINUTES=10'
	@echo 'make bench       speed, beside every other tunnel that is found'
	@echo 'make load        a thousand tunnels, 10,000 streams with events, 15,000 idle ones: cost, refused, lost, growth'
	@echo 'make clean       remove what was made here'

run: $(VENV)/.run
	@exec $(BIN)/python -m tunneld demo

test: $(VENV)/.dev
	$(PYTEST) -n $(TESTERS) --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml tunneld tunnelctl
	$(BIN)/python -m tests.support.audit
	$(PYTEST) -n $(TESTERS) --dist loadfile

fmt: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

load: $(VENV)/.dev
	$(BIN)/python -m tests.load

bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench

test-e2e: $(VENV)/.dev $(if $(shell command -v npm),tests/e2e/node/dist/main.js)
	@missing=; \
	for program in node npm chromium chromedriver nginx caddy tinyproxy microsocks wrk curl openssl ip tmux; do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$$program" >/dev/null || missing="$$missing $$program"; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "make test-e2e: not installed:$$missing"; \
		echo 'Get them on Debian:  sudo make apt-deps'; \
		if [ "$$CI" = true ]; then exit 1; fi; \
		echo 'What needs them is skipped.'; \
	fi
	$(PYTEST) tests/e2e --timeout=300

test-systemd: $(VENV)/.dev
	$(PYTEST) tests/systemd --timeout=240

test-chaos: $(VENV)/.dev
	$(PYTEST) tests/chaos --timeout=90 $(if $(SEED),--seed $(SEED))

test-packages: $(VENV)/.dev deb wheel
	$(PYTEST) tests/packages

deb: $(VENV)/.run
	@test -x /usr/bin/python3 || { echo 'make deb: the package is built on /usr/bin/python3, which is missing'; exit 1; }
	@/usr/bin/python3 packaging/deb/build.py --pip $(BIN)/python

wheel: $(VENV)/.run
	@rm -f dist/tunneld-*.whl
	@$(PIP) wheel --no-deps --wheel-dir dist .
	@rm -rf build
	@ls dist/tunneld-*.whl

soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.dev
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(PIP) install --use-pep517 --editable '.[dev,fuzz]'
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10)

apt-deps:
	@if [ "$$(id -u)" != 0 ]; then echo 'make apt-deps installs system packages: run it as root (sudo make apt-deps)'; exit 1; fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		$$(command -v npm >/dev/null || echo nodejs npm) chromium chromium-driver nginx caddy wrk curl openssl iproute2 prometheus prometheus-alertmanager tinyproxy-bin microsocks zsh fish man-db \
		procps ca-certificates debootstrap pipx systemd systemd-container dbus libnss-systemd faketime fail2ban tmux apache2-utils >/dev/null

clean:
	rm -rf $(VENV) tests/e2e/node/node_modules tests/e2e/node/dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .bench .fuzz build dist *.egg-info
	find tunneld tunnelctl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A client of the older dialect in TypeScript, with the packages that its lock file names.
tests/e2e/node/dist/main.js: tests/e2e/node/package-lock.json tests/e2e/node/tsconfig.json $(wildcard tests/e2e/node/src/*.ts)
	cd tests/e2e/node && npm ci --silent --no-audit --no-fund && npx --no-install tsc

# -- the environment -----------------------------------------------------------------------------------------

$(BIN)/python: $(FRESH)
	@'$(PYTHON)' -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo 'tunneld needs Python 3.11 or newer; "$(PYTHON)" is not.'; \
		echo 'Get it on Debian 12 or newer:  sudo apt install git make python3 python3-venv'; \
		echo 'or name another:               make $(MAKECMDGOALS) PYTHON=/path/to/python3.11'; \
		exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '"$(PYTHON)" cannot make an environment: Debian keeps that part in python3-venv.'; \
		echo 'Get it:  sudo apt install git make python3-venv'; \
		exit 1; }
	@echo 'Making $(VENV) with $(PYTHON) …'
	@rm -rf $(VENV)
	@'$(PYTHON)' -m venv $(VENV)
	@pwd >$(VENV)/.made-in

$(VENV)/.run: pyproject.toml $(FRESH) | $(BIN)/python
	@echo 'Installing what tunneld needs (a minute, the first time) …'
	@$(PIP) install --use-pep517 --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(FRESH) | $(BIN)/python
	@echo 'Installing what tunneld and its tests need (a few minutes, the first time) …'
	@$(PIP) install --use-pep517 --editable '.[dev]'
	@touch $(VENV)/.run $@

.PHONY: $(FRESH)
