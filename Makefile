# Each target sets up .venv by itself where that has not been done:
#   make demo     three methods on text found on this machine, and their comparison
#   make test     the tests
#   make check    lint, format and types
#   make format   mend lint and format
#   make bench    measure most of it again into bench/results/, about an hour on 2 cores

PYTHON ?= python3
RUN = .venv/bin/python -m
# Less strict than for treering/: that what bench/ calls is there.
BENCH_TYPES = --ignore-missing-imports --follow-imports=silent --disable-error-code=misc

BENCHES = plan stream readers memory prepare head step overhead trainer frameworks scaling

.PHONY: test check format demo bench

# Two files at a time, each with one thread: most tests are small and wait for files and processes.
test: .venv/.complete
	OMP_NUM_THREADS=1 $(RUN) pytest -q -n 2 --dist loadfile

check: .venv/.complete
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	MYPYPATH=bench:tests $(RUN) mypy --config-file= $(BENCH_TYPES) bench/*.py

format: .venv/.complete
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

demo: .venv/.ready
	.venv/bin/treering demo --out demo

# One after another, as each wants the machine for itself.
bench: .venv/.complete .venv-bench/.ready .venv-readers/.ready
	@for name in $(BENCHES); do echo "== $$name"; .venv/bin/python bench/$$name.py || exit 1; done

# What Treering is measured against: trainers and readers, which want different versions of one another.
.venv-bench/.ready: bench/requirements-frameworks.txt
.venv-readers/.ready: bench/requirements-readers.txt
.venv-bench/.ready .venv-readers/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q torch==2.13.0
	$(@D)/bin/python -m pip install -q -r $<
	touch $@

# torch comes first and exactly: asked for a range, pip would replace a CPU build by the largest one.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) pip install -q torch==2.13.0 -c constraints.txt
	$(RUN) pip install -q -e . -c constraints.txt
	touch $@

# What tests and checks need beside: their tools, and every extra but fp8, whose tests are left out
# without it: pyproject.toml says why.
.venv/.complete: .venv/.ready
	$(RUN) pip install -q -e ".[dev,all]" -c constraints.txt
	touch $@
