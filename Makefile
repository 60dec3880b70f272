# make demo    the main job, in small, on real digits: train, evaluate, draw (about 6 minutes after the installation)
# make test    all tests
# make lint    style
# make bench   speed, against plain ways of doing the same work
# make mutants does each test notice its faults? Breaks the program in one place at a time (about 40 minutes)
# make faults  kills, full disks and damaged files, thrown at training and evaluation (about 4 minutes)
# make verify trains two networks of results/ again, and compares (about 2 minutes; needs MNIST)
# make report  the notebook as one HTML page, figures/EXPERIMENT.html, for EXPERIMENT (default mnist-base)
# make figures the study's figures and tables, from results/ where there are no checkpoints
# make clean   removes figures and caches, never trained networks or data

PYTHON3 ?= python3
PYTHON := .venv/bin/python
export EXPERIMENT ?= mnist-base
STUDY = $(patsubst results/%-models.parquet,%,$(filter-out %/original-program-models.parquet,$(wildcard results/*-models.parquet)))

.PHONY: help demo test lint bench faults mutants verify report figures clean install
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: .venv/installed
.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON3) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON3) -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@touch $@

demo: install
	./train.sh demo
	./eval.sh logs-demo-*
	$(MAKE) report EXPERIMENT=demo
	@$(PYTHON) -m report.summary demo

# The empty addresses keep the page from loading scripts from the web: it opens from disk, complete.
report: install
	@$(PYTHON) -m report.experiments $(EXPERIMENT)
	@mkdir -p figures
	$(PYTHON) -m jupyter nbconvert --execute --to html --output-dir figures --output $(EXPERIMENT) \
	    --HTMLExporter.require_js_url= --HTMLExporter.mathjax_url= \
	    --HTMLExporter.widget_renderer_url= notebooks/analysis_sandbox.ipynb
	@echo "The figures are in figures/$(EXPERIMENT)/, the page with all of them is figures/$(EXPERIMENT).html"

figures: install
	set -e; for experiment in $(STUDY); do \
	    $(MAKE) report EXPERIMENT=$$experiment; \
	    $(PYTHON) -m report.summary $$experiment --tables >figures/$$experiment.md; \
	    $(PYTHON) -m report.sensitivity $$experiment >>figures/$$experiment.md; \
	done
	cp figures/mnist-base/q.png results/q.png

test: install
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -rs -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check --quiet .

verify: install
	OMP_NUM_THREADS=1 $(PYTHON) -m report.verify

mutants: install
	$(PYTHON) -m tests.mutants

faults: install
	OMP_NUM_THREADS=1 $(PYTHON) -m tests.fault_injection

bench: install
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.bench_associations
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.bench_modularity
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.bench_lesions
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.bench_training

clean:
	rm -rf figures .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path './logs*' -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
