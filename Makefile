# Two commands do everything on a fresh machine with Python 3.11 or newer: `make train` and `make test`.
# The environment is .venv; its versions are those of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Test processes; a test file stays in one of them, for its fixtures.
WORKERS ?= -n 2 --dist loadfile

# Flower's own environment: its packages are older than those of constraints.txt.
FLOWER := .venv-flower

.PHONY: train test test-fast check format lint types layers docs coverage browser sample clean flower networks ray bench help

help:
	@echo "make train    install, then train over the four hospitals in sample_data/ (about a minute)"
	@echo "make test     install, then run every test"
	@echo "make check    format, lint, types, import layers, docs, then every test"
	@echo "make docs     the documentation site, in site/, with strict links"
	@echo "make coverage the fast tests with their coverage, and its floor"
	@echo "make bench    speed and scale beside other ways, as one table in benchmarks/RESULTS.md (hours; SHORT=1: minutes)"
	@echo "make flower   an environment with Flower, in $(FLOWER)/, for the tests of its network"
	@echo "make networks Flower as above; NVFlare and public LightningModules in $(VENV)/, for their tests"
	@echo "make ray      Ray in $(VENV)/ (240 MB), and its tests in a network of their own"
	@echo "make sample   write sample_data/ again, byte for byte"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "medfed needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs,fast,nats,privacy,he,export,tables,huggingface]'
	touch $(READY)

train: $(READY)
	$(BIN)/medfed train configs/quickstart.yaml

# The fast tests first, so that a mistake shows within a minute or two.
test: $(READY) browser
	$(BIN)/python -m pytest -m "not slow" $(WORKERS)
	$(BIN)/python -m pytest -m slow $(WORKERS)

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow" $(WORKERS)

# Chromium opens the report in a test. Where apt can't install it, that test skips and says so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }; } || \
	  echo "chromium is not installed: the test that opens the report in a browser will be skipped"

format: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

coverage: $(READY)
	$(BIN)/python -m pytest -m "not slow" $(WORKERS) --cov --cov-report=term:skip-covered

check: format lint types layers docs test

# Start, epoch, inference, exchange, soak, simulation and peers; PARTS=start,epoch measures some of them.
bench: $(READY)
	$(BIN)/python benchmarks/bench.py $(if $(SHORT),--short) $(if $(PARTS),--only $(PARTS))

sample: $(READY)
	$(BIN)/python sample_data/make.py

# Both networks that others lead and public LightningModules, for their tests.
networks: $(READY) flower
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[nvflare,modules]'

# Ray opens ports on every interface, so its tests see the loopback alone.
ray: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	unshare --user --map-root-user --net sh -c 'ip link set lo up && exec "$$@"' sh $(BIN)/python -m pytest \
	  tests/federation/test_ray_workers.py tests/pipeline/test_federate_ray.py

flower:
	test -x $(FLOWER)/bin/python || $(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/pip install --quiet --disable-pip-version-check 'flwr==1.42.0' msgspec safetensors

clean:
	rm -rf $(VENV) $(FLOWER) runs
