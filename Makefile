# `make help` lists the targets. PYTHON names the interpreter that makes the virtual environment.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
# in several processes of one core each
PYTEST_ARGS ?= -n logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup report verify test lab evidence adapt adapt-help bench lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## +/\t/' | expand -t 12

setup: $(STAMP)  ## virtual environment with the pinned requirements

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer is needed; name one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo 'No virtual environment could be made; on Debian: apt-get install python3-venv' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

report: setup  ## run studies/lora.yaml and default.yaml from the first changed notebook on, rebuild figs/ and report/
	$(BIN)/python -m xai_utils report

verify: setup  ## compare the tables of a rerun with the committed ones, number by number
	$(BIN)/python -m xai_utils verify --study studies/lora.yaml
	$(BIN)/python -m xai_utils verify

test: setup  ## fetch the models that the tests use, then run the tests
	$(BIN)/python -m xai_utils fetch --tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lab: setup  ## JupyterLab on loopback, with its token
	$(BIN)/jupyter lab --ip=127.0.0.1 --notebook-dir=notebooks

evidence: setup  ## the long studies behind report/evidence/; resumes where it stopped
	$(BIN)/python -m xai_utils evidence

adapt: setup  ## make the adapted twin from its corpus; resumes where it stopped
	$(BIN)/python -m recipes.token_substitution

adapt-help: setup  ## make the LoRA twin from the same corpus; resumes where it stopped
	$(BIN)/python -m recipes.lora

bench: setup  ## time and memory beside inseq, captum and plain loops; writes benchmarks/results.csv and benchmarks/README.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	$(BIN)/python -m benchmarks

lint: setup  ## ruff and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## ruff's formatting and safe repairs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, caches under runs/ and build products; downloaded models stay
	rm -rf .venv runs report/site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
