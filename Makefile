# make demo   the main job on real traffic, in network namespaces of its own
# make test   format, lint, types and every test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the tests run against, by Debian package name; installed when we are root and they are missing.
APT := nftables iproute2 tcpdump curl openssl procps util-linux systemd systemd-container

.PHONY: demo test lint types check packages clean

demo: $(VENV)/demo
	$(BIN)/culvert demo

test: packages $(VENV)/test lint types
	$(BIN)/pytest

lint: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/test
	$(BIN)/mypy

packages:
	@missing=; for p in $(APT); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	  else echo "not installed, tests that need them will skip:$$missing"; fi; fi

$(VENV)/demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
