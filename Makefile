# Two commands do all their own set-up:  make demo   and   make test
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo community test slow lint setup clean

demo: $(STAMP)
	$(BIN)/earmark demo --force

community: $(STAMP)  # seven nodes, two of them Byzantine in turn; 15 minutes
	$(BIN)/python scripts/community

test: $(STAMP)
	scripts/test

slow: $(STAMP)
	scripts/test-slow

lint: $(STAMP)
	scripts/lint

setup: $(STAMP)

$(STAMP): pyproject.toml scripts/setup
	PYTHON=$(PYTHON) VENV=$(VENV) scripts/setup
	touch $(STAMP)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
