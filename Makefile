# Everything runs in .venv, which `make setup` creates from pyproject.toml.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUNS := runs/demo-general runs/demo-control runs/demo-pubmed
SHARDS := wikipedia books pubmed

.PHONY: setup constraints demo clean-demo test test-cluster test-wheel lint

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# Take the newest releases that pyproject.toml admits; constraints.txt says what to do then.
constraints:
	rm -rf build/newest && $(PYTHON) -m venv build/newest
	build/newest/bin/pip install --quiet --disable-pip-version-check --editable '.[dev,plots]'
	(grep '^#' constraints.txt; build/newest/bin/pip freeze --exclude-editable | \
		sed -e 's/+cpu$$//' -e "s/^triton==.*/$$(grep ^triton== constraints.txt)/") >build/constraints.txt
	mv build/constraints.txt constraints.txt && rm -rf build/newest

# Prepare real text, pretrain while pruning to 90 %, continue on PubMed, export, report.
demo: setup
	$(BIN)/sparsebert prepare --source wikipedia --input samples/wikipedia.jsonl.gz --output data/wikipedia --vocab samples/vocab.txt
	$(BIN)/sparsebert prepare --source books --input samples/books.jsonl.gz --output data/books --vocab samples/vocab.txt
	$(BIN)/sparsebert prepare --source pubmed --input samples/pubmed.xml.gz samples/pubmed-29768149.xml samples/pubmedqa.jsonl.gz --output data/pubmed --vocab samples/vocab.txt
	$(BIN)/sparsebert pretrain configs/demo_general.yaml
	$(BIN)/sparsebert pretrain configs/demo_pubmed.yaml
	$(BIN)/sparsebert pretrain configs/demo_control.yaml --local
	$(BIN)/sparsebert export runs/demo-pubmed exports/demo-pubmed
	$(BIN)/python examples/demo_report.py

clean-demo:
	rm -rf $(RUNS) $(foreach s,$(SHARDS),data/$(s) data/$(s)-validation) exports/demo-pubmed

# How many tests run at once. Those of one process take most of the time, and one core each.
JOBS ?= 2

# 18 minutes on two idle cores: unit tests, several processes, whole runs with and without Ray.
test: setup
	$(BIN)/python -m pytest -m "not cluster" -n $(JOBS) --dist worksteal

# The rest: SLURM, several nodes, faults, kill points, mutations, network storage, mirrors.
test-cluster: setup
	$(BIN)/python -m pytest -m cluster -n $(JOBS) --dist loadfile

# sparsebert-inference for machines that serve, without a compiler: a wheel in dist/.
.PHONY: wheel
wheel: setup
	sparsebert/make_wheel.sh $(BIN)/python dist

# Both wheels in a new environment, used from another folder.
test-wheel: setup
	tests/check_wheel.sh $(PYTHON)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The oldest version of every range in pyproject.toml, in an environment of its own. It takes 6 GB:
# the package index has torch for CUDA. Not part of `make test`, nor of CI.
OLDEST_TESTS ?= tests/unit/sparsity tests/unit/distributed tests/unit/bert tests/multiprocess

.PHONY: test-oldest
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest $(OLDEST_TESTS)

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt --editable '.[dev]'
	touch $@
