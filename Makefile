# Everything a newcomer runs. Each target sets up what it needs, once, and says what it does.
#
#   make demo     an adaptive server under a changing load on this machine: table, picture, summary (some 5 minutes)
#   make test     lint, types, contracts and all tests but the long ones, with the time of each stage
#   make check    lint, types and import contracts alone
#   make bench    the measurements behind the README's figures; bench-peers, bench-engine, bench-regret for the others;
#                   bench-clients runs vllm bench serve and guidellm against the server
#   make soak     long randomised runs

PYTHON ?= python3
VENV   ?= .venv
# The torch to install. TORCH_INDEX names a package index for it, e.g. https://download.pytorch.org/whl/cpu for the
# small CPU build; unset, pip's own configuration decides, which on a plain Linux machine means the CUDA build.
TORCH_VERSION ?= 2.13.0
TORCH_INDEX   ?=

BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TARGET := .cache/models/stdlib-target-190m

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench bench-paper bench-peers bench-clients bench-engine bench-regret page-picture soak clean

help: ## list the targets
	@sed -n '3,8s/^#  //p' $(MAKEFILE_LIST)

setup: $(READY) ## make the virtual environment

$(READY): pyproject.toml scripts/setup
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_VERSION="$(TORCH_VERSION)" TORCH_INDEX="$(TORCH_INDEX)" scripts/setup
	@touch $@

$(TARGET)/model.safetensors: $(READY) benchmarks/inflate.py examples/models/stdlib-target/model.safetensors
	@$(BIN)/python benchmarks/inflate.py examples/models/stdlib-target $(TARGET)

demo: $(READY) $(TARGET)/model.safetensors ## serve the bundled pair under a changing load
	@PYTHONPATH=examples $(BIN)/python -m smartspec_demo

check: $(READY) ## lint, types, import contracts
	@VENV="$(VENV)" scripts/test check

test: $(READY) ## everything that must hold before a change lands
	@VENV="$(VENV)" scripts/test all

bench: bench-paper ## the measurements behind the README's figures

bench-paper: $(READY) $(TARGET)/model.safetensors ## adaptive against fixed speculation; BENCH='--minutes 15'
	@$(BIN)/python benchmarks/paper.py $(BENCH)

bench-peers: $(READY) $(TARGET)/model.safetensors ## against vLLM and transformers (installs vLLM, some 2 GB)
	@$(BIN)/python benchmarks/peers.py $(BENCH)

bench-clients: $(READY) ## vllm bench serve and guidellm against the server (installs both, some 3 GB); BENCH='--clients guidellm'
	@$(BIN)/python benchmarks/clients.py $(BENCH)

bench-engine: $(READY) $(TARGET)/model.safetensors ## the engine's step, part by part; BENCH='--sections forward k0'
	@$(BIN)/python benchmarks/engine.py $(BENCH)

bench-regret: $(READY) ## the policy against the best fixed length in simulated worlds; BENCH='--seeds 8'
	@$(BIN)/python benchmarks/regret.py $(BENCH)

page-picture: $(READY) ## docs/page.png: the page of a real server under load, in a headless browser
	@SMARTSPEC_PAGE_PICTURE=docs/page.png $(BIN)/pytest -q -n 0 tests/e2e/test_page.py -k working

soak: $(READY) ## the long tests
	@VENV="$(VENV)" scripts/test soak

clean: ## remove what make made here
	rm -rf $(VENV) .cache demo-out build dist
