# Two commands matter: `make book` and `make test`. Both set up what they need and ask nothing.
# Options: PYTHON=/path/to/python3.12, TORCH_INDEX=<PyTorch's own CPU wheel index>, PIP_ARGS="...".

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The newest Python the pins are known to resolve for; python3 where none of these is on the path.
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do command -v python$$v && break; done || command -v python3 || echo python3)
VENV_PYTHON := .venv/bin/python
# One process for each core, each with one thread; a file's tests stay together, for what they share.
TEST := OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
TORCHVISION_TARGET ?= $(or $(PRUNING_LIB_TORCHVISION_TARGET),.tv)
TORCHVISION_STAMP := $(TORCHVISION_TARGET)/torchvision-0.28.0.stamp
export TORCH_INDEX PIP_ARGS
export PYTHONUNBUFFERED := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup book test quick unit compat site-tests lint pair gpu gpu-wheels lock serve clean distclean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

FIND_PYTHON = command -v "$(PYTHON)" >/dev/null || { echo "There is no Python at '$(PYTHON)'. Install Python 3.11 or later" \
	"(Debian, Ubuntu: apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }

setup: ## Make .venv with the pinned versions (done once; quick when nothing changed)
	@$(FIND_PYTHON)
	@"$(PYTHON)" scripts/setup_env.py

book: setup ## Execute the chapters, build the site, say where it is
	@$(VENV_PYTHON) scripts/build_book.py

lint: setup ## Check the code's style and that each chapter and its notebook are in step
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) scripts/pair.py --check

# torchvision must never enter .venv beside a CPU torch; one test reads it from a folder of its own.
$(TORCHVISION_STAMP): | setup
	@echo "Fetching torchvision into $(TORCHVISION_TARGET), for the cross-check of the Fréchet distance"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade $(PIP_ARGS) \
		--target $(TORCHVISION_TARGET) torchvision==0.28.0 && touch $@

quick: setup ## Under a minute: lint, the house's rules, and the tests that find most mistakes
	@$(MAKE) --no-print-directory lint
	@$(TEST) -m quick

unit: setup $(TORCHVISION_STAMP) ## Run the tests that need no built book
	@PRUNING_LIB_TORCHVISION_TARGET="$(abspath $(TORCHVISION_TARGET))" $(TEST) -m "not book"

compat: setup ## Try every tiny pipeline of tests/compat, not the sample that `make test` takes, and record the table
	@COMPAT=all $(TEST) --dist load tests/compat/test_beside.py -k "not switched_on"
	@$(VENV_PYTHON) tests/compat/table.py --record

site-tests: setup ## Run the tests of the built book
	@$(VENV_PYTHON) scripts/find_chromium.py --install
	@$(TEST) -m book

test: setup ## Everything: lint, unit tests, the strict book build, tests of the built site
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory book
	@$(MAKE) --no-print-directory site-tests

pair: setup ## Write each chapter's .ipynb from its .md
	@$(VENV_PYTHON) scripts/pair.py

# MINUTES=8, ARCHIVE=gpu.tar.gz, and GPU="any other option of python -m benchmarks gpu".
# WHEELS=folder: measure with PYTHON as it is, in no environment of ours, without a network.
GPU_OPTIONS = $(if $(MINUTES),--minutes "$(MINUTES)") $(if $(ARCHIVE),--archive "$(ARCHIVE)") $(GPU)
gpu: $(if $(WHEELS),,setup) ## Measure on this machine's GPU and write pruning_book/records/gpu_*.json
ifdef WHEELS
	@$(FIND_PYTHON)
	@"$(PYTHON)" scripts/gpu.py run --wheels "$(WHEELS)" -- $(GPU_OPTIONS)
else
	@$(VENV_PYTHON) -m benchmarks gpu $(GPU_OPTIONS)
endif

gpu-wheels: ## Collect what `make gpu WHEELS=folder` needs, for PYTHON_VERSION
	@$(FIND_PYTHON)
	@test -n "$(WHEELS)" || { echo "Name a folder: make gpu-wheels WHEELS=folder PYTHON_VERSION=3.12" >&2; exit 2; }
	@"$(PYTHON)" scripts/gpu.py collect "$(WHEELS)" $(if $(PYTHON_VERSION),--python "$(PYTHON_VERSION)")

lock: ## Write requirements.lock from requirements.in (needs uv)
	@"$(PYTHON)" scripts/lock.py

serve: setup ## Serve the built site on http://127.0.0.1:8000
	@test -f _build/html/index.html || { echo "No site yet: run make book first." >&2; exit 1; }
	@echo "The book: http://127.0.0.1:8000/ (Ctrl-C ends it)"
	@$(VENV_PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html 8000

clean: ## Remove what was built and executed
	rm -rf _build .pytest_cache .ruff_cache

distclean: clean ## Remove the environment as well
	rm -rf .venv .tv *.egg-info
