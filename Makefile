# make demo     score comments on a real Triton, from nothing but Python
# make test     everything that CI checks
# make check    lint and types
# make e2e      train, export, serve, score and load-test a small model
# make bench    load-test the starter model against loadtest/slo.yaml
# make fuzz     look for server errors of the gateway, for long
# make fuzz-million  a million wrong requests over gRPC and HTTP, and right ones between them: for an idle machine
# make ray      bulk scoring on a real Ray cluster of this machine
# make slow     tests of speeds, for an idle machine
# make fleet    all tests of Envoy, containers, rollouts and monitoring, also those that are too long for CI
# make balance  what Envoy costs and how replicas scale behind it, for an idle machine
# make chaos    break a fleet in every way we know, and check what callers see; writes docker/CHAOS.md
# make lock     pin what server and gateway install, with hashes, in requirements-*.txt; LOCK=--upgrade takes newer ones
# make sbom     what that is, as CycloneDX documents: results/sbom-serve.json, results/sbom-gateway.json
# make audit    known vulnerabilities of it; asks PyPI, and fails where that does not answer
# make race     throughput: the bare encoder, this server, and rivals (make rivals installs those)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
FREE := --grpc-port 0 --http-port 0 --metrics-port 0

TOOLS := .tools/bin
COMPILE := $(TOOLS)/uv pip compile pyproject.toml -c constraints.txt --generate-hashes --no-annotate --quiet \
	--custom-compile-command "make lock" --python-version 3.11 --python-platform x86_64-manylinux_2_35

.PHONY: demo install test check e2e bench ray slow fleet balance chaos lock sbom audit race rivals fuzz fuzz-million clean

demo: $(VENV)/.serve
	@$(BIN)/python -m serve $(FREE) -- $(BIN)/python -m client.demo

install: $(VENV)/.dev

# most tests start real processes, and a busy machine may stop one for seconds: what fails is run once more, and named
test: $(VENV)/.dev check
	$(BIN)/python -m pytest --reruns 1

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile docker/Dockerfile.cpu docker/Dockerfile.gateway
	$(BIN)/python -m serve.envoy check

e2e: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_pipeline.py

bench: $(VENV)/.dev
	$(BIN)/python -m serve $(FREE) -- $(BIN)/python -m loadtest run --json results/bench.json

ray: $(VENV)/.ray
	$(BIN)/python -m pytest -m slow tests/test_client_ray_data.py

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

fleet: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_serve_envoy.py tests/test_docker.py \
		tests/test_docker_monitoring.py tests/test_serve_rollout.py tests/test_serve_watchdog.py \
		tests/test_loadtest_balance.py

balance: $(VENV)/.dev
	$(BIN)/python -m loadtest.balance --json loadtest/results/balance.json; status=$$?; \
	if [ $$status -le 1 ]; then $(BIN)/python -m loadtest.balance --table loadtest/results/balance.json; fi; exit $$status

chaos: $(VENV)/.chaos
	$(BIN)/python -m loadtest.chaos --json loadtest/results/chaos.json; status=$$?; \
	if [ $$status -le 1 ]; then $(BIN)/python -m loadtest.chaos --table loadtest/results/chaos.json; fi; exit $$status

race: $(VENV)/.dev
	$(BIN)/python -m loadtest.bench --requests 1,16,64 $(RACE)

rivals: $(VENV)/.dev
	$(BIN)/python -m loadtest.rivals install

fuzz: $(VENV)/.dev
	TRITOX_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest --timeout 0 tests/test_serve_gateway.py -k fuzzing

fuzz-million: $(VENV)/.dev
	$(BIN)/python -m loadtest.fuzz --requests 1000000 --json loadtest/results/fuzz.json; status=$$?; \
	if [ $$status -le 1 ]; then $(BIN)/python -m loadtest.fuzz --table loadtest/results/fuzz.json; fi; exit $$status

lock: .tools/.installed
	$(COMPILE) --extra serve --extra client -o requirements-serve.txt $(LOCK)
	$(COMPILE) --extra gateway --extra postgres -o requirements-gateway.txt $(LOCK)

sbom: .tools/.installed
	@mkdir -p results
	for name in serve gateway; do \
		$(TOOLS)/cyclonedx-py requirements requirements-$$name.txt --pyproject pyproject.toml --output-reproducible \
			--of JSON -o results/sbom-$$name.json || exit 1; \
	done

audit: .tools/.installed
	for name in serve gateway; do \
		$(TOOLS)/pip-audit --strict --disable-pip --require-hashes -r requirements-$$name.txt || exit 1; \
	done

clean:
	rm -rf .tools $(VENV) .rivals *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

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

$(VENV)/.chaos: $(VENV)/.dev
	@$(PIP) -e '.[chaos]'
	@touch $@

.tools/.installed: constraints.txt
	$(PYTHON) -m venv .tools
	@$(TOOLS)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv pip-audit cyclonedx-bom
	@touch $@

$(VENV):
	$(PYTHON) -m venv $(VENV)
