# Every target works from a fresh clone: it makes .venv from requirements.lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXAMPLES := transfer enrollment concurrency streaming decision-model batch order basic single-worker partitioned worker-pool multiple-projections scaling stop-resume with-logging in-process

.DEFAULT_GOAL := help
.PHONY: help docs run bench config test recipes lint format proto lock images chart e2e clean docs/configuration.md docs/roles.md docs/command-line.md

help: ## Show what one can type
	@grep -hE '^[a-z0-9/.-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-21s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade >/dev/null
	@echo "installing the locked packages into $(VENV) (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

run: $(STAMP) ## Run a store on localhost:5005 with embedded PostgreSQL and NATS (honours ORISUN_*)
	@exec $(BIN)/orisun serve

bench: $(STAMP) ## Measure the store beside its floors, 25 minutes (ARGS=--quick: a smoke of three); writes benchmarks/README.md
	@$(BIN)/python -m benchmarks.run $(ARGS)

config: $(STAMP) ## Show the effective settings and where each came from
	@$(BIN)/orisun config

examples: $(EXAMPLES:%=example-%) ## Run all examples, each on a store of its own (make example-transfer: one of them)

$(EXAMPLES:%=example-%): example-%: $(STAMP)
	@echo "== $*"
	@$(BIN)/python -m examples.$(subst -,_,$*)

test: $(STAMP) ## Run the whole suite against real PostgreSQL and NATS that it starts itself
	@$(BIN)/python -m pytest $(ARGS)

recipes: $(STAMP) ## Run the recipes of docs/clients.md (Go, Node, Java ...), which fetch from their registries
	@$(BIN)/python -m pytest -m recipe tests/recipes $(ARGS)

lint: $(STAMP) ## Check format, style, types and the direction of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: $(STAMP) ## Generate client/orisun_api from proto/
	@$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=client --pyi_out=client --grpc_python_out=client \
		proto/orisun_api/eventstore.proto proto/orisun_api/admin.proto

images: ## Build the container images orisun:VERSION and orisun-nats:VERSION (honours IMAGE, VERSION, DOCKER)
	@scripts/images.sh $(VERSION)

chart: ## Bring crds/ into the chart, and render it as one file for kubectl (needs helm)
	@scripts/render_chart.sh

e2e: $(STAMP) ## Run the end-to-end suite on a real Kubernetes: yours (KUBECONFIG), or one that it makes (ARGS=-k name)
	@scripts/e2e.sh $(ARGS)

docs: $(STAMP) ## Build the documentation as a site in site/ (ARGS=serve: look at it while writing)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs $(if $(ARGS),$(ARGS),build --quiet --strict)

docs/configuration.md: $(STAMP) ## Generate the tables of all variables from settings.py
	@sed '/^<!-- generated/q' $@ > $@.new && echo >> $@.new && $(BIN)/orisun config --output markdown >> $@.new
	@mv $@.new $@

docs/roles.md: $(STAMP) ## Generate the tables of roles from core/access.py
	@sed '/^<!-- generated/q' $@ > $@.new && echo >> $@.new && $(BIN)/python -m orisun_server.core.access >> $@.new
	@mv $@.new $@

docs/command-line.md: $(STAMP) ## Generate the help of all commands
	@sed '/^<!-- generated/q' $@ > $@.new && echo >> $@.new && $(BIN)/python -m orisun.commands.reference >> $@.new
	@mv $@.new $@

lock: ## Resolve pyproject.toml into requirements.lock, and what the images hold of it (needs uv)
	uv pip compile pyproject.toml --all-extras --group dev --group e2e --universal --generate-hashes --python-version 3.11 --no-annotate -o requirements.lock
	uv pip compile pyproject.toml --extra server --extra native --extra embedded --extra operator --group build -c requirements.lock --universal --generate-hashes --python-version 3.11 --no-annotate -o requirements-image.lock

clean: ## Remove the environment and caches (not ./data, which holds your events)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
