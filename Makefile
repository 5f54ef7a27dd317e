# Two commands are enough on a fresh machine with git, make and Python 3.11 or newer: `make demo`, `make test`.

PYTHON ?= python3
PORT ?= 5000
MODEL ?= models
DOCKER ?= docker
# The extras in the lock file, and those that only `make test-interop` installs.
LOCKED := pipeline serve export pretrained video sweep trainer docs dev
UNLOCKED := openvino,timm
# For `make image`. BUILD_ARGS: more options of `docker build`, such as --network=host.
BASE_IMAGE ?= python:3.11-slim-bookworm
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= yolact-pipeline:$(VERSION)
# What the image is built from. Changes elsewhere, such as in params.yaml, do not mark its commit as dirty.
IMAGE_FILES := Dockerfile .dockerignore requirements.lock pyproject.toml README.md LICENSE deploy/image conf/base.yaml \
  yolact yolact_bench yolact_cli yolact_ops components pipelines serving
COMMIT ?= $(shell commit=$$(git rev-parse --verify --quiet HEAD 2>/dev/null) || { echo unknown; exit; }; \
  if [ -n "$$(git status --porcelain --untracked-files=all -- $(IMAGE_FILES))" ]; then dirty=-dirty; fi; \
  echo "$$commit$$dirty")
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# dvc.yaml uses the environment's `python`, whether or not the environment is activated.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# No usage statistics leave this machine.
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help install demo serve pipeline pipeline-docker image test test-slow test-faults test-page test-interop test-containers lint format mlflow clean lock
.PHONY: licences sbom release docs

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Create the environment .venv from the lock file
	@echo "$(VENV) is ready; to work in it: source $(BIN)/activate"

demo: $(STAMP) ## Run the five steps on the generated sample and show the results
	@dvc repro
	@yolact summary

serve: $(STAMP) ## Serve the demo's model, or another one (MODEL=models:/yolact@champion)
	@yolact serve $(MODEL)

pipeline: $(STAMP) ## Run the Kubeflow training pipeline locally, on the sample; its tasks are processes
	@python -m pipelines run-local --preset sample-cpu

# One process per core, four at most: each starts its own servers. Each computes with one thread: more threads than
# cores slow each other down.
test: $(STAMP) ## Run the tests
	@OMP_NUM_THREADS=1 pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP) ## Run the tests that take minutes each, which `make test` leaves out
	@OMP_NUM_THREADS=1 pytest -m slow

test-faults: $(STAMP) ## Run the tests of the fault matrix, docs/reliability.md
	@OMP_NUM_THREADS=1 pytest -m fault

# axe-core checks accessibility. It is fetched, not stored here: 650 KB under the MPL 2.0.
AXE := axe-core-4.14.1
AXE_SHA256 := e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745

test-page: $(STAMP) ## Test the server's page in Chromium; npm fetches axe-core
	@cd $(VENV) && test -f package/axe.min.js || { npm pack --silent axe-core@$(AXE:axe-core-%=%) >/dev/null && \
	  echo "$(AXE_SHA256)  $(AXE).tgz" | sha256sum --check --quiet && tar -xzf $(AXE).tgz package/axe.min.js; }
	@YOLACT_TEST_AXE=$(CURDIR)/$(VENV)/package/axe.min.js OMP_NUM_THREADS=1 pytest -m slow tests/serving/browser

# Clients and readers of others, and the extras outside requirements.lock, in an environment of their own.
INTEROP := $(VENV)/interop

test-interop: $(INTEROP)/.installed ## Test with clients and readers of others (KServe, CVAT, Label Studio), OpenVINO and timm
	@YOLACT_TEST_INTEROP=1 OMP_NUM_THREADS=1 $(INTEROP)/bin/python -m pytest -m interop

test-containers: $(STAMP) ## Build the image and run the pipeline in it, with Docker or as root on Debian or Ubuntu
	@bash .ci/containers

lint: $(STAMP) ## Check style, types and import contracts
	@ruff check
	@ruff format --check
	@mypy
	@lint-imports --no-logo --no-cache

format: $(STAMP) ## Format the code and apply automatic fixes
	@ruff check --fix
	@ruff format

docs: $(STAMP) ## Build the documentation site, build/site/index.html
	@NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict --config-file docs/site/mkdocs.yml
	@echo "build/site/index.html; to read and search it: python -m http.server --directory build/site"

licences: $(STAMP) ## Write docs/licences.md: versions and licences of the dependencies
	@python .ci/packages.py licences > docs/licences.md.new && mv docs/licences.md.new docs/licences.md

sbom: $(STAMP) ## Write the image's bill of materials to build/sbom.json (CycloneDX); with Debian's packages if IMAGE is built
	@image=; if $(DOCKER) image inspect $(IMAGE) >/dev/null 2>&1; then image=$(IMAGE); \
	  else echo "$(IMAGE) is not built: without the Debian packages"; fi; mkdir -p build && \
	  DOCKER=$(DOCKER) python .ci/packages.py sbom $$image > build/sbom.json.new && mv build/sbom.json.new build/sbom.json

release: $(STAMP) ## Build and check the packages, the pipelines and the image into dist/, and say what to publish
	@python .ci/release.py

mlflow: $(STAMP) ## Start MLflow for this folder's runs and print the last one's address (PORT=5000)
	@yolact mlflow --port $(PORT)

image: ## Build the container image (IMAGE, BASE_IMAGE, VERSION, COMMIT, BUILD_ARGS), and show its size
	@versions=$$($(PYTHON) -m yolact_ops.lineage.code) && $(DOCKER) build --build-arg BASE_IMAGE=$(BASE_IMAGE) \
	  --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --build-arg CODE_VERSIONS="$$versions" \
	  --tag $(IMAGE) $(BUILD_ARGS) .
	@$(DOCKER) image inspect --format '{{.Size}}' $(IMAGE) | awk '{ printf "$(IMAGE): %.2f GB; by layer:\n", $$1 / 1e9 }'
	@$(DOCKER) history --no-trunc=false --format '{{.Size}}\t{{.CreatedBy}}' $(IMAGE) | grep -v '^0B'

pipeline-docker: $(STAMP) ## Run the training pipeline in containers (IMAGE; MLFLOW_TRACKING_URI names a server)
	@$(DOCKER) image inspect $(IMAGE) >/dev/null 2>&1 || $(MAKE) image
	@python -m pipelines run-local --preset sample-cpu --runner docker --image $(IMAGE)

clean: ## Remove byte code and tool caches; keeps .venv, data, models and runs
	@find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov build dist *.egg-info dvc_plots

lock: $(BIN)/uv ## Pin the dependencies of pyproject.toml (LOCK="--upgrade" for newer versions)
	@uv pip compile --quiet pyproject.toml $(addprefix --extra ,$(LOCKED)) --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header $(LOCK) --output-file requirements.lock

$(STAMP): requirements.lock pyproject.toml | $(BIN)/uv
	@echo "Installing requirements.lock into $(VENV) (some gigabytes the first time: PyTorch and its GPU libraries)"
	@uv pip sync --quiet --require-hashes requirements.lock
	@uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# What requirements.lock has overrides the bounds of the others' packages. These are not pinned: their users take the
# newest, too.
$(INTEROP)/.installed: requirements.lock tests/interop/requirements.txt pyproject.toml | $(BIN)/uv
	@uv venv --quiet --allow-existing --python $(BIN)/python $(INTEROP)
	@uv pip sync --quiet --python $(INTEROP)/bin/python --require-hashes requirements.lock
	@uv pip install --quiet --python $(INTEROP)/bin/python --override requirements.lock --no-build-isolation \
	  -r tests/interop/requirements.txt --editable ".[$(UNLOCKED)]"
	@touch $@

# uv's own version and hashes come from the lock file too.
$(BIN)/uv: | $(BIN)/pip
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>/dev/null) || found="not there"; \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$found." \
	    "Name another one, for example: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make an environment: its venv module is missing." \
	    "On Debian and Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
