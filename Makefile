# What people type all day. Each line works in the environment that `make install` makes; PYTHON names another one.
VENV ?= .venv
PYTHON ?= $(VENV)/bin/python
export OMP_NUM_THREADS = 1

.PHONY: install check test browser docs

install:
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -e '.[test,docs]'

# Lint, types and the tests that take under two seconds: about two and a half minutes on two cores.
check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -q -n 2 --dist loadgroup -m 'not slow' --ignore tests/browser

# Everything; what needs a browser skips where there is none.
test:
	$(PYTHON) -m pytest -q -n 2 --dist loadgroup

browser:
	$(PYTHON) -m pytest -q -n 2 --dist loadgroup tests/browser

# The site in site/, links checked; the report of outputs/$(RUN), where there is one, becomes its living page.
RUN ?= embedded
docs:
	NO_MKDOCS_2_WARNING=1 LABKIT_DOCS_RUN=outputs/$(RUN) $(PYTHON) -m mkdocs build --strict
