# `make help` lists the commands. Everything is installed into .venv, which git ignores.
PYTHON ?= python3
PORT ?= 8000
MODEL ?= fashion
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null)
ifdef UV  # the same packages in a tenth of the time
INSTALL := $(UV) pip install --quiet --python $(BIN)/python -c constraints.txt
else
# Without PYTHONWARNINGS, setuptools explains editable installs at length to every newcomer.
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
endif

.DEFAULT_GOAL := help
.PHONY: help run demo-shift train docs test test-pythons test-ray test-proxied test-images test-gpu lint format train-demo screenshots constraints clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

run: .venv/.service ## serve the shipped models with the console on http://127.0.0.1:8000
	$(BIN)/priordial serve --default-model $(MODEL) --port $(PORT)

# The parts of the suite, two of which run side by side, the longest first. Each has a process of its own: the
# console's tests keep an event loop, and a part's server under load must not stand in another part's way.
PARTS := test-rest test-training test-server test-api test-console test-contract
OF_A_PART := tests/training tests/service/server tests/service/api tests/service/contract tests/service/console
# OMP_WAIT_POLICY: PyTorch's threads would spin while they wait, and two parts share the processors.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q --durations 8

# What else shall run beside the parts, as in `make test ALSO="lint test-pythons"`.
ALSO ?=

.PHONY: $(PARTS)
test: .venv/.all .venv/.deploy ## run every test
	@$(MAKE) --no-print-directory --keep-going --jobs 2 --output-sync=target $(PARTS) $(ALSO)

test-training:
	$(PYTEST) tests/training
	$(PYTEST) --doctest-modules service/contract training/learning training/scores

test-server:
	$(PYTEST) tests/service/server

test-api:
	$(PYTEST) tests/service/api

test-contract:
	$(BIN)/python -m coverage run -m pytest -q tests/service/contract
	$(BIN)/python -m coverage report

test-console:
	$(PYTEST) tests/service/console

test-rest:
	$(PYTEST) $(addprefix --ignore ,$(OF_A_PART)) --ignore tests/on_ray --ignore tests/images

test-pythons: .venv/.all ## run what depends on the interpreter on the oldest and the newest Python
	env -u PRIORDIAL_LEAVE_NOTHING_OUT .ci/pythons

test-ray: .venv/.ray ## run the service on Ray Serve: two replicas, one PostgreSQL, a real Prometheus
	$(BIN)/python -m pytest -q tests/on_ray

test-proxied: .venv/.all ## run the HTTP contract's tests on four replicas behind HAProxy
	$(BIN)/python -m pytest -q -p tests.support.proxied tests/service/api

test-images: .venv/.all ## build the container images and run them in this machine's Docker engine
	$(BIN)/python -m pytest -q tests/images

test-gpu: .venv/.all ## run the served-equals-formula tests on CUDA; fails where there is no GPU
	$(BIN)/python -m tests.gpu

lint: .venv/.all ## check format, style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/.all ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

train: .venv/.training ## install PyTorch and what training needs, some minutes; then priordial train works
	@echo "Training is installed. Next: .venv/bin/priordial train --help"

docs: .venv/.docs ## write the documentation as a site with search, for use offline: build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open build/site/index.html."

demo-shift: .venv/.service ## play a shop whose class mix changes, three days in two minutes; watch the page Shift
	$(BIN)/python examples/demo_shift.py --port $(PORT)

train-demo: .venv/.all ## train on scikit-learn's digits and publish the next version of models/digits
	$(BIN)/priordial train fit --recipe digits --models models

screenshots: .venv/.all ## write docs/console.png, the picture of the console in the README
	$(BIN)/python -m tests.service.console.picture

constraints: .venv/.all ## pin the newest versions that pyproject.toml allows
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python deploy/constraints.py

clean: ## remove what was built, but not the models or the priors
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it: make run PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

.venv/.service: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing the service into .venv: about 320 MB, one to two minutes (seconds with uv) …"
	@begun=$$(date +%s); $(INSTALL) -e '.[serve]' && echo "Installed in $$(( $$(date +%s) - begun )) s."
	@touch $@

.venv/.training: .venv/.service
	@echo "Installing PyTorch and what training needs into .venv: some minutes …"
	@begun=$$(date +%s); $(INSTALL) -e '.[serve,training]' && echo "Installed in $$(( $$(date +%s) - begun )) s."
	@touch $@

.venv/.docs: .venv/.service
	$(INSTALL) --group docs
	touch $@

.venv/.ray: .venv/.all
	$(INSTALL) -e '.[service,cpu,ray]'
	touch $@

.venv/.all: .venv/.service
	$(INSTALL) -e '.[service,cpu,postgres,http,s3,training,tensorboard,traces,grpc,tokenizers,arrow,zstd]' --group dev --group docs
	touch $@

# What the tests of the Kubernetes files need; without it those tests are named as left out.
.venv/.deploy: .venv/bin/python deploy/tools.py
	-$(BIN)/python deploy/tools.py
	touch $@
