# The commands of the lab. Each works on a fresh clone: it makes .venv and installs first, if that is not done yet.
# A Python other than python3:      make env PYTHON=python3.12
# Another source of PyTorch wheels: make env TORCH_INDEX=URL     (empty: whatever pip is configured with)

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(PY) -m pip --disable-pip-version-check
LAB_ARGS ?=
PYTEST_ARGS ?=

.PHONY: help env run lab data test clean

help:
	@echo "make run     execute the notebooks, results in build/"
	@echo "make lab     open them in JupyterLab on this computer"
	@echo "make data    get CIFAR-10 (162 MB); without it the lab draws its own images"
	@echo "make test    unit tests and all notebooks"
	@echo "make env     only make .venv and install"
	@echo "make clean   remove build/ and caches; .venv and data/cache stay"

env: $(STAMP)
	@echo "Environment ready: $$($(PY) --version) in $(VENV)"

# A failed step names itself, says what to do, and leaves no stamp: the next call goes on where this one stopped.
fail = { echo "" >&2; echo "FAILED at step $(1). $(2)" >&2; exit 1; }
RETRY := Read the last lines above; if they speak of the network, try again (what is downloaded already is kept).

# On Linux pip's default torch carries gigabytes of CUDA. Without an NVIDIA driver, and where pip would take that build
# (a version without a +cpu or +cu ending), PyTorch's own index of CPU wheels is used.
BARE_TORCH := import json, sys; v = [p["metadata"]["version"] for p in json.load(sys.stdin)["install"]]; \
	sys.exit(not v or "+" in v[0])
define choose_index
index="$(TORCH_INDEX)"; \
if [ "$(origin TORCH_INDEX)" = undefined ] && [ "$$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 \
	&& $(PIP) install -q --dry-run --no-deps --report - -c constraints.txt torch 2>/dev/null \
	| $(PY) -c '$(BARE_TORCH)' 2>/dev/null; then index="$(CPU_INDEX)"; fi
endef

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| $(call fail,1 (Python),'$(PYTHON)' is missing or older than 3.10: install Python 3.10 or newer$(COMMA) or name one: make env PYTHON=python3.12)
	@echo "[1/3] virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) && $(PIP) install -q "pip>=23.1" \
		|| $(call fail,1 (virtual environment),On Debian and Ubuntu install the package python3-venv. A damaged $(VENV) can be deleted.)
	@echo "[2/3] PyTorch"
	@$(choose_index); $(PIP) install $${index:+--index-url "$$index"} -c constraints.txt torch torchvision \
		|| $(call fail,2 (PyTorch),$(RETRY) Another source of wheels: make env TORCH_INDEX=URL.)
	@echo "[3/3] the lab and what it needs"
	@$(PIP) install -c constraints.txt -e '.[test]' || $(call fail,3 (the lab),$(RETRY))
	@touch $@

COMMA := ,

run: env
	@$(PY) -m zsq_lab.run_notebooks

lab: env
	@$(PY) -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" \
		--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_ARGS)

data: env
	@$(PY) -m zsq_lab download cifar10

test: env
	@$(PY) -m pytest --nbval -n 2 $(PYTEST_ARGS)

clean:
	rm -rf build .pytest_cache .hypothesis *.egg-info
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +
