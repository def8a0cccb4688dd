# Two commands on a fresh machine: `make demo` shows the main job, `make test` proves it. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
# A range that is the same everywhere, so that a failure in CI is one on any machine: 30 to 75 ms of a core each.
SMOKE_FIRST ?= 1
SMOKE_SEEDS ?= 3000
export PYTHON

.PHONY: help demo test simulate-smoke lint bench lab lab-smoke docs clean

help:
	@echo "make demo   show a shortage, and a process that cannot die lose its memory (needs python3 only)"
	@echo "make test   prove it: pure tests, then real victims on this kernel (as root: all of them)"
	@echo "make simulate-smoke   $(SMOKE_SEEDS) schedules of watcher and reaper on a machine that never was: a minute or two"
	@echo "make lint   ruff, mypy --strict, import-linter, codespell"
	@echo "make bench  measure: writes bench/results/latest.json and docs/benchmarks.md"
	@echo "make lab    whole machines out of memory, every killer side by side; many hours, goes on where it was interrupted"
	@echo "make lab-smoke  one kernel, the key scenarios, ours only; some minutes"
	@echo "make docs   write what is generated: the drawing, the man page, the README's figure"
	@echo "make clean  remove what these made"

demo: .venv/.ready-run
	@$(BIN)/python -m oomreaper demo

test: .venv/.ready-dev
	$(BIN)/python -m pytest $(TESTS)

simulate-smoke: .venv/.ready-dev
	@echo "seeds $(SMOKE_FIRST) to $$(($(SMOKE_FIRST) + $(SMOKE_SEEDS) - 1))"
	$(BIN)/python -m oomreaper simulate check --first $(SMOKE_FIRST) --seeds $(SMOKE_SEEDS)

lint: .venv/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --quiet 2>/dev/null || $(BIN)/lint-imports
	$(BIN)/codespell

bench: .venv/.ready-dev
	$(BIN)/python -m bench

lab: .venv/.ready-dev
	$(BIN)/python -m lab run
	$(BIN)/python -m lab report

lab-smoke: .venv/.ready-dev
	$(BIN)/python -m lab smoke

docs: .venv/.ready-dev
	$(BIN)/python tools/draw_lifecycle.py
	$(BIN)/python tools/write_man_page.py
	$(BIN)/python tools/write_service_page.py
	$(BIN)/python tools/write_settings_page.py
	$(BIN)/python tools/write_completions.py
	$(BIN)/python tools/readme_figure.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests bench lab tools -name __pycache__ -type d -exec rm -rf {} +

.venv/.ready-run: tools/bootstrap.sh
	@sh tools/bootstrap.sh run
	@touch $@

.venv/.ready-dev: tools/bootstrap.sh pyproject.toml
	@sh tools/bootstrap.sh dev
	@touch $@ .venv/.ready-run
