# make demo: the main job from nothing · make test: all tests · make fast: the developer's loop · make check: lint, types, imports, spelling
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A file's tests share what they build; in their own order the longest files come first, not last.
WORKERS := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: install demo test fast check clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" "setuptools>=80"
	$(BIN)/python -m pip install --quiet --editable ".[tabular,dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/kdpipe build --project examples/digits --target cpu --target arm

test: $(INSTALLED)
	$(BIN)/python -m pytest $(WORKERS)

fast: $(INSTALLED)
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p kdpipe.foundation -p kdpipe.tasks -p kdpipe.targets -p kdpipe.robustness -p kdpipe.stages -p kdpipe.pipeline
	$(BIN)/lint-imports
	$(BIN)/codespell foundation pipeline stages targets tasks robustness tests docs examples benchmarks README.md CHANGELOG.md

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build kdpipe.egg-info
