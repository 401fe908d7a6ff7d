# make demo     score comments on a real Triton, from nothing but Python
# make test     everything that CI checks
# make check    lint and types
# make e2e      train, export, serve, score and load-test a small model
# make bench    load-test the starter model against loadtest/slo.yaml
# make fuzz     look for server errors of the gateway, for long
# make ray      bulk scoring on a real Ray cluster of this machine
# make slow     tests of speeds, for an idle machine
# make race     throughput: the bare encoder, this server, and rivals (make rivals installs those)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
FREE := --grpc-port 0 --http-port 0 --metrics-port 0

.PHONY: demo install test check e2e bench ray slow race rivals fuzz clean

demo: $(VENV)/.serve
	@$(BIN)/python -m serve $(FREE) -- $(BIN)/python -m client.demo

install: $(VENV)/.dev

test: $(VENV)/.dev check
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile docker/Dockerfile.gateway

e2e: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_pipeline.py

bench: $(VENV)/.dev
	$(BIN)/python -m serve $(FREE) -- $(BIN)/python -m loadtest run --json results/bench.json

ray: $(VENV)/.ray
	$(BIN)/python -m pytest -m slow tests/test_client_ray_data.py

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

race: $(VENV)/.dev
	$(BIN)/python -m loadtest.bench --requests 1,16,64 $(RACE)

rivals: $(VENV)/.dev
	$(BIN)/python -m loadtest.rivals install

fuzz: $(VENV)/.dev
	TRITOX_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest --timeout 0 tests/test_serve_gateway.py -k fuzzing

clean:
	rm -rf $(VENV) .rivals *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Each stamp stands for an installed set of extras; constraints.txt pins every version.
$(VENV)/.serve: pyproject.toml constraints.txt | $(VENV)
	@echo "installing what serving needs into $(VENV) ..."
	@$(PIP) -e '.[serve,client]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)
	@echo "installing every stage into $(VENV) ..."
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.serve

$(VENV)/.ray: $(VENV)/.dev
	@$(PIP) -e '.[ray]'
	@touch $@

$(VENV):
	$(PYTHON) -m venv $(VENV)
