# Everything runs in .venv, which `make setup` creates from pyproject.toml.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUNS := runs/demo-general runs/demo-control runs/demo-pubmed
SHARDS := wikipedia books pubmed

.PHONY: setup demo clean-demo test test-cluster lint

setup: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# Prepare real text, pretrain while pruning to 90 %, continue on PubMed, export, report.
demo: setup
	$(BIN)/sparsebert prepare --source wikipedia --input samples/wikipedia.jsonl.gz --output data/wikipedia --vocab samples/vocab.txt
	$(BIN)/sparsebert prepare --source books --input samples/books.jsonl.gz --output data/books --vocab samples/vocab.txt
	$(BIN)/sparsebert prepare --source pubmed --input samples/pubmed.xml.gz samples/pubmed-29768149.xml samples/pubmedqa.jsonl.gz --output data/pubmed --vocab samples/vocab.txt
	$(BIN)/sparsebert pretrain configs/demo_general.yaml
	$(BIN)/sparsebert pretrain configs/demo_pubmed.yaml
	$(BIN)/sparsebert pretrain configs/demo_control.yaml --local
	$(BIN)/sparsebert export runs/demo-pubmed exports/demo-pubmed
	$(BIN)/python -m launch.demo

clean-demo:
	rm -rf $(RUNS) $(foreach s,$(SHARDS),data/$(s) data/$(s)-validation) exports/demo-pubmed

# 15 minutes or less on two idle cores: unit tests, several processes, whole runs with and without Ray.
test: setup
	$(BIN)/python -m pytest -m "not cluster"

# The rest: SLURM, several nodes, faults, kill points, mutations, network storage, mirrors.
test-cluster: setup
	$(BIN)/python -m pytest -m cluster

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
