# Each target sets up .venv by itself where that has not been done:
#   make demo     three methods on text found on this machine, and their comparison
#   make test     the tests
#   make check    lint, format and types
#   make format   mend lint and format

PYTHON ?= python3
RUN = .venv/bin/python -m

.PHONY: test check format demo

test: .venv/.complete
	$(RUN) pytest -q

check: .venv/.complete
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: .venv/.complete
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

demo: .venv/.ready
	.venv/bin/treering demo --out demo

# torch comes first and exactly: asked for a range, pip would replace a CPU build by the largest one.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) pip install -q torch==2.13.0 -c constraints.txt
	$(RUN) pip install -q -e . -c constraints.txt
	touch $@

# What tests and checks need beside: their tools, and every extra.
.venv/.complete: .venv/.ready
	$(RUN) pip install -q -e ".[dev,all]" -c constraints.txt
	touch $@
