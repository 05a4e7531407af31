# make demo   the main job on real traffic, in network namespaces of its own
# make test   format, lint, types and every test
# make bench  Culvert beside what people use today, into docs/performance.md; about two hours, as root, nothing else running
# make bench-quick   four minutes, beside Envoy in HBONE mode: one line of JSON with ratios Culvert / Envoy
# make soak   mixed load for SOAK_SECONDS (600); fails when something grows that must not
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One for each core: more, and tests of whole systems wait for each other. A file's tests stay together, and share what
# they set up.
JOBS ?= $(shell nproc)
# What the tests run against, by Debian package name; installed when we are root and they are missing.
APT := nftables iptables iproute2 tcpdump curl openssl procps util-linux systemd systemd-container podman runc \
	busybox-static openssh-server haproxy nginx libfaketime

# What the benchmarks run and are run against; `make test` needs none of it.
BENCH_APT := nftables iproute2 curl procps util-linux nginx libnginx-mod-stream iperf3 wrk apache2-utils haproxy stunnel4

.PHONY: demo test lint types check packages clean bench bench-quick bench-packages soak

demo: $(VENV)/demo
	$(BIN)/culvert demo

test: packages $(VENV)/test lint types
	$(BIN)/pytest -m 'not alone' -n $(JOBS) --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest -m alone

lint: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/test
	$(BIN)/mypy

bench: bench-packages $(VENV)/bench
	@$(BIN)/python -m bench full

bench-quick: bench-packages $(VENV)/bench
	@$(BIN)/python -m bench quick

soak: bench-packages $(VENV)/bench
	@$(BIN)/python -m bench soak

packages: WANTED := $(APT)
bench-packages: WANTED := $(BENCH_APT)
# The servers that this installs are not started: RUNLEVEL says so to Debian's scripts, SYSTEMD_OFFLINE to systemctl.
# Messages go to stderr, results alone to stdout.
packages bench-packages:
	@exec >&2; missing=; for p in $(WANTED); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && RUNLEVEL=1 SYSTEMD_OFFLINE=1 DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends $$missing; \
	  else echo "not installed, what needs them will be skipped:$$missing"; fi; fi

$(VENV)/demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

$(VENV)/bench: pyproject.toml
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]' >&2
	@touch $@

clean:
	rm -rf $(VENV)
