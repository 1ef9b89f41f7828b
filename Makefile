# make quickstart   pretrain, fine-tune, measure and report on embedded data, three seeds, in minutes
# make test         run the tests
# make lint         check style, formatting, imports and types
# make docs         build the site of the documentation: build/docs/index.html
# make bench        run the benchmarks
# make clean        remove the files of the other targets, but not $(WORKDIR)
#
# Each target installs what it needs into $(VENV). Python 3.11 or newer and make are enough:
#   make test PYTHON=python3.12 VENV=.venv-3.12

PYTHON  ?= python3
VENV    = .venv
WORKDIR = runs/quickstart
ARGS    =

BIN := $(VENV)/bin

# Variables of the user's shell that would break this environment.
unexport PYTHONHOME PYTHONPATH PYTHONSTARTUP VIRTUAL_ENV JAX_PLATFORMS JAX_PLATFORM_NAME
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV UV_PYTHON UV_SYSTEM_PYTHON
export PYTHONNOUSERSITE := 1

.PHONY: help quickstart test lint docs bench clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@sed -n 's/^# \(make\|  make\)/\1/p' Makefile

quickstart: $(VENV)/.installed
	$(BIN)/occinv reproduce quickstart --workdir "$(WORKDIR)" --seeds 3 $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet $(ARGS) docs build/docs

bench: $(VENV)/.installed-bench
	@for file in benchmarks/[!_]*.py; do \
	  echo "$(BIN)/python $$file $(ARGS)"; "$(BIN)/python" "$$file" $(ARGS) || exit 1; done

clean:
	rm -rf $(VENV) build dist docs/api *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/.created:
	@command -v "$(PYTHON)" > /dev/null || { echo "occinv: no command '$(PYTHON)':" \
	  "install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info >= (3, 11) or \
	  sys.exit("occinv: $(PYTHON) is Python " + v + ", expected 3.11 or newer: name one with PYTHON=...")'
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || { echo "occinv: $(PYTHON) has no module" \
	  "venv: install it (Debian and Ubuntu: the package python3-venv)" >&2; exit 1; }
	@echo "Creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
	  || echo "uv is not available; installing with pip, which is slower"
	@touch $@

# uv is much faster than pip, but does not read pip's settings (such as a private index). If it fails,
# pip installs.
define install
	@echo "Installing occinv$(1) into $(VENV) (some 1 GB; a minute or two)"
	@if [ -x $(BIN)/uv ] && $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.$(1)'; then :; \
	else echo "Installing with pip"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.$(1)'; fi
	@touch $@
endef

$(VENV)/.installed: $(VENV)/.created setup.py pyproject.toml
	$(call install,)

$(VENV)/.installed-dev: $(VENV)/.created setup.py pyproject.toml
	$(call install,[dev])
	@touch $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.installed
	$(call install,[docs])

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(call install,[bench])
