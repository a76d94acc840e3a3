# Everything runs in .venv, which the first command makes. PYTHON names the Python to make it with, CXX the
# compiler, TORCH what pip installs as torch, ARGS what is passed on: make demo ARGS=--quick
PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=

.PHONY: demo test setup lint format cuda

demo: setup
	.venv/bin/tokops demo $(ARGS)

test: setup
	.venv/bin/python -m pytest $(ARGS)

setup:
	@command -v $(PYTHON) >/dev/null || { echo "tokops: $(PYTHON) was not found. Install Python 3.10 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) tools/setup_env.py --torch "$(TORCH)"

CPP = $$(git ls-files -co --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh')

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run -Werror $(CPP)

format: setup
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .
	.venv/bin/clang-format -i $(CPP)

cuda: setup
	@command -v nvcc >/dev/null || { echo "tokops: nvcc was not found. Install the CUDA toolkit 13 and put its bin folder on PATH." >&2; exit 1; }
	TOKOPS_CUDA=1 .venv/bin/python setup.py -q build_ext --inplace
