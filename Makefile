# Two commands: `make digits` trains, `make test` tests. Both install first.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/digits
# Processes of `make test`. One compiles on about one core.
WORKERS ?= 2
# Tests that wait for each other's processes have the machine to themselves.
ALONE := tests/test_distributed.py tests/test_slurm.py

.PHONY: digits install install-dev test test-slow lint clean

digits: install
	$(BIN)/python -m vit_jax train --config=configs/digits.py --workdir=$(WORKDIR)

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

install-dev: .venv/installed-dev

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

test: install-dev lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Compilers for hardware that is not here (`plan`) into a folder of their own,
# where the other tests do not see them: JAX complains of a GPU's that has none.
# torch first and pinned: the CPU build. timm and torchvision without their
# dependencies: torchvision has no build to go with it (tests/torch_reference.py).
.venv/installed-slow: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt transformers==5.23.0 torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps timm==1.0.31 torchvision==0.28.0 mlxtend==0.25.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target .venv/plan libtpu jax-cuda12-pjrt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt wandb==0.31.0 nbclient==0.11.0 ipykernel
	touch $@

# A browser for reports: Debian's, and what drives it, from npm. Where they may
# not be installed, its test is skipped, and says so.
.venv/installed-browser: .venv/installed-dev
	as=$$([ $$(id -u) = 0 ] || echo sudo -n); export DEBIAN_FRONTEND=noninteractive; \
	install="$$as apt-get install -qq -y --no-install-recommends chromium"; \
	command -v chromium >/dev/null 2>&1 || $$install >/dev/null 2>&1 || \
	  { $$as apt-get update -qq && $$install >/dev/null; } || true
	npm install --silent --no-fund --no-audit --prefix .venv/browser playwright-core@1.64.1 >/dev/null || true
	touch $@

# A real Slurm, for tests/test_slurm.py: Debian's, as root or by sudo. Where
# neither may, that test is skipped, and says so.
.venv/installed-slurm: .venv/installed-dev
	as=$$([ $$(id -u) = 0 ] || echo sudo -n); export DEBIAN_FRONTEND=noninteractive; \
	install="$$as apt-get install -qq -y --no-install-recommends slurm-wlm munge"; \
	command -v slurmctld munged >/dev/null 2>&1 || $$install >/dev/null 2>&1 || \
	  { $$as apt-get update -qq && $$install >/dev/null; } || true
	touch $@

test-slow: .venv/installed-slow .venv/installed-slurm .venv/installed-browser
	$(BIN)/python -m pytest -m slow -n $(WORKERS) --dist loadfile $(foreach f,$(ALONE),--ignore=$(f))
	$(BIN)/python -m pytest -m slow $(ALONE)

lint: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf .venv
