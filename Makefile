# Each target sets up .venv by itself where that has not been done:
#   make demo     train a small model on text found on this machine; a second time shows the result
#   make test     the tests
#   make check    lint, format and types
#   make format   mend lint and format

PYTHON ?= python3
RUN = .venv/bin/python -m

.PHONY: test check format demo

test: .venv/.ready
	$(RUN) pytest -q

check: .venv/.ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: .venv/.ready
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

demo: .venv/.ready
	.venv/bin/python recipes/collect.py demo
	.venv/bin/treering run recipes/demo.toml --data demo --out demo/run

# torch comes first and exactly: asked for a range, pip would replace a CPU build by the largest one.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) pip install -q torch==2.13.0 -c constraints.txt
	$(RUN) pip install -q -e ".[dev,hub]" -c constraints.txt
	touch $@
