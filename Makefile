# Every target makes its own virtual environment first; nothing is done twice.
SHELL := bash
PYTHON := .venv/bin/python
PORT ?= 8000
STUDIES ?= studies
DATA ?= ../shared/data/dev
GOLDEN ?= ../shared/golden/public
ARGS ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv serve serve-triton e2e test lint parity review \
	bench-serving bench-labels bench-accuracy bench-engine bench-retrain bench-strategies \
	bench-triton bench-gpu studies

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

venv: ## make .venv (Python 3.10 or 3.11) with requirements.txt
	@scripts/make_venv.sh

serve: venv ## start MONAI Label with the sample studies (PORT=8000, STUDIES=studies, ARGS="--conf KEY VALUE")
	@$(PYTHON) scripts/serve.py --port $(PORT) --studies $(STUDIES) $(ARGS)

serve-triton: venv ## the same with the networks on a Triton server of this machine, which it starts and ends
	@$(PYTHON) scripts/serve_triton.py --port $(PORT) --studies $(STUDIES) $(ARGS)

test: export OMP_NUM_THREADS ?= 1
# A worker that dies ends the run: pytest-xdist waits for ever for the tests that it takes with it.
test: venv ## run the whole test suite, files side by side (ARGS="-k NAME", WORKERS=2)
	@$(PYTHON) -m pytest --import-mode=importlib -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  --max-worker-restart 0 $(ARGS)

e2e: venv ## install Chromium and Orthanc (apt, as root) for the browser tests, and run them
	@apt-get install -y --no-install-recommends chromium fonts-dejavu-core orthanc orthanc-dicomweb || \
	  (apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core orthanc orthanc-dicomweb)
	@$(PYTHON) -m pytest --import-mode=importlib tests/e2e/test_page.py tests/e2e/test_slicer.py tests/e2e/test_ohif.py $(ARGS)

lint: venv ## ruff and mypy
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

bench-serving: venv ## the server beside MONAI Label's policy, propagation, label store, hostile requests (over an hour)
	@status=0; for table in serving propagation label_store serving_fuzz; do \
	  $(PYTHON) benchmarks/$$table.py || status=1; done; exit $$status

bench-labels: venv ## 10,000 faults in the label store
	@$(PYTHON) benchmarks/label_store.py $(ARGS)

parity: venv ## compare with the reference's outputs (GOLDEN=../shared/golden/public)
	@$(PYTHON) scripts/check_parity.py --golden $(GOLDEN) $(ARGS)

bench-accuracy: venv ## accuracy beside its goals and floors (DATA=../shared/data/dev)
	@$(PYTHON) benchmarks/accuracy.py --data $(DATA) $(ARGS)

studies: venv ## the paper's studies on DATA: click position, box offset, strategies, external boxes, sizes
	@set -e; for table in benchmarks/study_*.py; do $(PYTHON) $$table --data $(DATA) $(ARGS); done

bench-engine: venv ## the data engine's claims, about 30 minutes (ARGS="--only mutants,sample")
	@$(PYTHON) benchmarks/data_engine.py $(ARGS)

bench-retrain: venv ## retraining: 1,000 simulated schedules, a set never seen, clicks meanwhile, the whole loop (about 30 minutes)
	@$(PYTHON) benchmarks/retrain.py $(ARGS)

bench-strategies: venv ## which image to label next: Dice by number of labels, for each strategy (about 25 minutes)
	@$(PYTHON) benchmarks/strategies.py --data $(DATA) $(ARGS)

review: venv ## look over made masks (DIR=folder of build_masks, PORT=8000)
	@$(PYTHON) scripts/review_masks.py $(DIR) --port $(PORT)

bench-triton: venv ## graphs and Triton: latency, throughput, overhead, hot reload, a crash (about 10 minutes)
	@status=0; for table in export_latency triton_serving vit_latency; do \
	  $(PYTHON) benchmarks/$$table.py || status=1; done; exit $$status

bench-gpu: venv ## on a GPU: build TensorRT's engines, compare them with torch, time them beside it (ARGS="--model NAME --weights F")
	@$(PYTHON) benchmarks/gpu_engines.py $(ARGS)
