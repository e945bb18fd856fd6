# Two commands do all: `make reproduce` and `make test`. They need Python 3.11 or newer, make and a C compiler; a second
# call skips what is done already. Whatever they make lies in folders that git ignores:
#   .venv      the environment
#   data runs  the data sets, and what training left (python -m jointvae writes both)
#   _executed  the chapters with their outputs        _tested      the same, of the smoke tier, for the tests
#   _executed.failed (and _tested.failed) what ran of chapters that did not finish
#   _build     html/index.html is the built book      _build/test  the book that the tests read
#              jointvae.pdf is the printed one
#   notebooks  the chapters as notebooks, yours to change
#   exported   models for the browser and as ONNX (python -m jointvae export writes it)

.DEFAULT_GOAL := help
.PHONY: help reproduce test nightly test-cluster env book site serve pdf notebooks bench experiments lock verify \
  fuzz audit lint format clean distclean FORCE
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
TIER ?= auto
SEED ?= 0
PORT ?= 8000
# Chapters that are executed at a time, and processes that test; they share the cores.
JOBS ?= 2
# What pip is asked for; for another pair: make test TORCH="torch==2.11.0 torchvision==0.26.0"
TORCH ?= -r torch.txt
# Where the executed chapters and the site go.
STAGE ?= _executed
SITE ?= _build

# Chapters run in book/, so a relative folder of data would be looked for in the wrong place.
ifdef JOINTVAE_DATA
export JOINTVAE_DATA := $(abspath $(JOINTVAE_DATA))
endif

ifeq (,$(findstring |$(TIER)|,|auto|smoke|cpu|paper|))
$(error TIER must be auto, smoke, cpu or paper, not "$(TIER)")
endif
ifneq (,$(shell printf %s '$(SEED)' | tr -d 0-9)$(if $(SEED),,empty))
$(error SEED must be a whole number, not "$(SEED)")
endif

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
READY := $(VENV)/.ready
# One thread for each process: two threads of each would wait for one another's core.
TESTS = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS)
# The hardware chooses the tier unless it is given.
CHOSEN_TIER = $(if $(filter auto,$(TIER)),$$($(PY) -c 'import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); from jointvae.book import choose_tier; print(choose_tier("auto"))'),$(TIER))

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "Variables: TIER=smoke|cpu|paper (else the hardware decides), SEED=$(SEED), JOBS=$(JOBS), PYTHON=$(PYTHON), PORT=$(PORT)"

reproduce: $(READY) ## get the data, train, execute the chapters, build the book, print the claims
	@tier=$(CHOSEN_TIER) && \
	$(PY) -m jointvae reproduce --tier $$tier --seed $(SEED) && \
	$(MAKE) book TIER=$$tier && \
	$(PY) -m jointvae claims
	@echo "The book: $(CURDIR)/$(SITE)/html/index.html"

test: lint ## run everything that is tested: style, types, units, the whole book of the smoke tier, a browser
	$(TESTS) --dist loadfile -m "not book and not nightly" --cov --cov-report=
	@$(MAKE) -j$(JOBS) site TIER=smoke SEED=0 STAGE=_tested SITE=_build/test
	$(TESTS) -m book --cov --cov-append --cov-report=term --cov-fail-under=90

nightly: $(READY) ## run the tests that take minutes: every moment and every step at which a run can be killed
	$(TESTS) -m nightly

test-cluster: $(VENV)/.cluster ## install Ray and test sweeps on clusters of this machine
	$(PY) -m pytest -m cluster

book: $(READY) ## execute what changed and build the book
	@$(MAKE) -j$(JOBS) site

serve: book ## build the book and serve it on this machine, at PORT
	@echo "http://127.0.0.1:$(PORT)/ (Ctrl-C stops)"
	@$(PY) -m http.server --bind 127.0.0.1 --directory $(SITE)/html $(PORT)

pdf: $(READY) ## build the book and print it into one file, SITE/jointvae.pdf; needs Chromium
	@$(PY) book/_tools/pdf.py --check
	@$(MAKE) book
	@$(PY) book/_tools/pdf.py --site $(SITE)/html --output $(SITE)/jointvae.pdf

notebooks: $(READY) ## write the chapters to notebooks/, to change freely
	@$(PY) book/_tools/notebooks.py

# These train many seeds: up to an hour each on two cores.
EXPERIMENTS := $(addprefix benchmarks/,differences.py candidates.py threads.py precision.py layers.py together.py)

bench: $(READY) ## measure speed and memory here; RECORD=1 keeps it as the book's own
	@set -e; for script in $(filter-out $(EXPERIMENTS),$(wildcard benchmarks/[a-z]*.py)); do \
	  echo "$$script"; $(PY) $$script $(if $(RECORD),--record); done

experiments: $(READY) ## measure what threads, precision, differences from the paper's code and candidate changes do to the result: hours
	@set -e; for script in $(EXPERIMENTS); do echo "$$script"; $(PY) $$script $(if $(RECORD),--record); done

verify: $(READY) ## check every recorded result: schema, claim, weights, and the accuracy that these earn again
	@$(PY) -m jointvae verify

FUZZ ?= 20000
fuzz: $(READY) ## try FUZZ spoilt files and options, other ones each time; `make test` tries a thousand
	@FUZZ=$(FUZZ) $(TESTS) tests/test_fuzz.py

# In an environment of its own, which uv makes and keeps: the book needs none of it.
AUDITOR := $(PY) -m uv tool run --quiet pip-audit==2.10.1
audit: $(READY) ## look up the pinned packages in the public lists of weaknesses; needs a network
	@rm -f $(VENV)/audit.json; $(AUDITOR) --requirement requirements.lock --require-hashes --disable-pip \
	  --progress-spinner off --format json --output $(VENV)/audit.json >$(VENV)/audit.log 2>&1; status=$$?; \
	if [ ! -s $(VENV)/audit.json ]; then \
	  echo "The audit could not be made: it needs a network that reaches the package registry ($(VENV)/audit.log says more)." >&2; exit 2; \
	fi; cat $(VENV)/audit.log; exit $$status

lint: $(READY) ## check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY) ## mend style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove what was built; data/, runs/, results/ and notebooks/ stay
	rm -rf _executed _executed.failed _tested _tested.failed _build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

distclean: clean ## remove the environment as well
	rm -rf $(VENV) *.egg-info

# --- The environment ---------------------------------------------------------------------------------------------------

env: $(READY) ## make the environment, nothing else

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The book needs Python 3.11 or newer; name one with: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv; install it (on Debian and Ubuntu: the package python3-venv)." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# The pair of PyTorch that was asked for last: another one renews the environment.
$(VENV)/.torch: FORCE | $(PY)
	@echo "$(TORCH)" | cmp -s - $@ || echo "$(TORCH)" > $@

# PyTorch stands outside the lock, because its builds differ by machine. The lock comes after it and has the last word.
# It is complete, so pip has nothing to resolve (--no-deps): where a lock names a package and another one asks for that
# package with an extra, older pips look at versions newer than the lock's, and fail for want of their hashes.
$(READY): pyproject.toml requirements.lock torch.txt $(VENV)/.torch | $(PY)
	@echo "Making the environment in $(VENV): some minutes, once."
	@$(PIP) install $(TORCH)
	@$(PIP) install --no-deps --require-hashes -r requirements.lock
	@$(PIP) check
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# Ray, for `sweep --engine ray`: an extra, on top.
$(VENV)/.cluster: requirements-cluster.lock $(READY)
	@$(PIP) install --no-deps --require-hashes -r requirements-cluster.lock
	@$(PIP) check
	@touch $@

EXTRA_CLUSTER = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cluster"])
LOCK = $(PY) -m uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade --quiet

lock: $(READY) ## pin the newest versions that pyproject.toml allows, with hashes, for all Pythons
	@printf '%s ; python_version < "3"\n' torch torchvision > $(VENV)/outside-the-lock.txt
	$(LOCK) pyproject.toml --extra book --extra dev --overrides $(VENV)/outside-the-lock.txt -o requirements.lock
	@$(PY) -c '$(EXTRA_CLUSTER)' > $(VENV)/cluster.txt
	$(LOCK) $(VENV)/cluster.txt --constraints requirements.lock -o requirements-cluster.lock

# --- The book ----------------------------------------------------------------------------------------------------------

# A chapter runs again when one of these changed: its text, the package, a result, the tier or the seed; and the pages
# that show the reader's own runs, when one of these did.
RESULTS := $(shell find results -type f ! -name .lock 2>/dev/null) $(wildcard runs/DATA_FALLBACK)
RUNS := $(wildcard runs/*.json)
SHOW_RUNS := mnist yours
INPUTS := $(wildcard jointvae/*.py) $(RESULTS) $(wildcard runs/benchmarks/*.json) book/_tools/execute.py
CHAPTERS := $(wildcard book/*.md)
THREADS = $(or $(OMP_NUM_THREADS),$(shell $(PY) -c 'import os; print(max(1, os.cpu_count() // $(JOBS)))'))
EXECUTED := $(CHAPTERS:book/%.md=$(STAGE)/.done/%)
PARTS := _config.yml CITATION.cff CHANGELOG.md CONTRIBUTING.md $(shell find book -type f -not -name '*.md' -not -name '*.pyc')

# Tier, seed and the names of all inputs, so that a removed file counts as a change too.
$(STAGE)/.inputs: FORCE | $(READY)
	@mkdir -p $(STAGE)/.done && echo '*' > $(STAGE)/.gitignore
	@echo $(CHOSEN_TIER) $(SEED) $(sort $(INPUTS)) > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(STAGE)/.runs: FORCE | $(STAGE)/.inputs
	@echo $(sort $(RUNS)) > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(SHOW_RUNS:%=$(STAGE)/.done/%): $(RUNS) $(STAGE)/.runs

# The mark is as old as the start of the run: what changes during it counts as a change.
$(STAGE)/.done/%: book/%.md $(INPUTS) $(STAGE)/.inputs
	@touch $@.start
	@read tier seed rest < $(STAGE)/.inputs && echo "Executing $< ($$tier)" && \
	OMP_NUM_THREADS=$(THREADS) $(PY) book/_tools/execute.py $< --tier $$tier --seed $$seed --output $(STAGE)/$*.ipynb
	@mv $@.start $@

$(SITE)/html/index.html: $(EXECUTED) $(PARTS) $(RESULTS) $(RUNS) $(STAGE)/.inputs | $(READY)
	@$(PY) book/_tools/build.py --stage $(STAGE) --site $(SITE)

site: $(SITE)/html/index.html
