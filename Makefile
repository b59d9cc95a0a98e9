.PHONY: help setup demo test frameworks test-vm blackbox-reference compliance fuzz soak-crash soak-rest check bench lock clean

help:  ## what the targets do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' Makefile

setup:  ## virtual environment in .venv and the system packages of the default driver
	@scripts/setup

demo: setup  ## deploy the sample echo agent on a fresh platform and talk to it
	@.venv/bin/python scripts/demo.py

test:  ## every test; ARGS passes options to pytest
	@scripts/setup docker-registry skopeo runc runsc docker.io uidmap
	@.venv/bin/python -m pytest $(ARGS)
	@if [ -z "$(ARGS)" ]; then $(MAKE) --no-print-directory frameworks; fi

frameworks: setup  ## the adapters and their samples, in an environment that has the frameworks
	@scripts/frameworks
	@.cache/frameworks/bin/python -m pytest agent/tests/adapters agent/tests/samples/test_framework_samples.py $(ARGS)

test-vm: setup  ## the oci driver on hosts with only control groups v1 and only v2, in virtual machines
	@.venv/bin/python tests/vm/run.py --install v1
	@.venv/bin/python tests/vm/run.py --install v2

blackbox-reference: setup  ## the black-box suite of cupola-agent against the reference library, about 2 minutes
	@.venv/bin/python -m agent.tests.blackbox.reference $(ARGS)

compliance: setup  ## the Open Responses checks of cupola-agent; OPENRESPONSES_DIR names a checkout of the public suite
	@.venv/bin/python -m pytest -q agent/tests/compliance $(ARGS)
	@if [ -n "$$OPENRESPONSES_DIR" ]; then .venv/bin/python -m agent.tests.compliance.public_suite; fi

fuzz: setup  ## 50,000 generated requests to cupola-agent, about 15 minutes; ARGS="--requests N --seed S"
	@.venv/bin/python -m agent.tests.fuzz.run $(ARGS)

soak-crash: setup  ## 1,000 kills -9 at random under load, about 40 minutes; ARGS="--rounds N --seed S"
	@.venv/bin/python tests/soak/crash.py $(ARGS)

soak-rest: setup  ## 10,000 times asleep and awake again, about 15 minutes; ARGS="--cycles N --seed S"
	@.venv/bin/python tests/soak/rest.py $(ARGS)

check: setup  ## lint, types, import rules
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache

bench: setup  ## every benchmark, with its reference beside it
	@for file in benchmarks/[a-z]*.py; do .venv/bin/python "$$file" $(ARGS) || exit 1; done

lock: setup  ## resolve the dependencies again; the lock names no index
	@.venv/bin/uv pip compile pyproject.toml agent/pyproject.toml --group dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-package cupola-agent --upgrade -q -o requirements.lock
	@.venv/bin/uv pip compile agent/pyproject.toml --all-extras --group agent/pyproject.toml:frameworks --universal \
		--python-version 3.11 --generate-hashes --no-header --upgrade -q -o agent/frameworks.lock

clean:
	@rm -rf .venv .cache
