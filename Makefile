# Each target works alone on a fresh checkout: it makes .venv first, and is quick once that is there.
# make PYTHON=python3.12 venv     takes another Python (3.10 to 3.13).
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make venv     takes torch without CUDA.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed
NVFLARE := .venv-nvflare

.PHONY: venv test test-nvflare demo screenshots results
.DELETE_ON_ERROR:

venv: $(STAMP)

# torch comes first and alone, so that its pin decides and nothing else draws in another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet "$$(grep '^torch==' constraints.txt)" --constraint constraints.txt
	$(PY) -m pip install --quiet --editable '.[test]' --constraint constraints.txt
	touch $(STAMP)

test: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest

# The same federation under NVFlare itself, which has an environment of its own (140 MB more).
test-nvflare: $(STAMP) $(NVFLARE)/.installed
	TWINFED_NVFLARE_PYTHON="$(CURDIR)/$(NVFLARE)/bin/python" $(PY) -m pytest -m slow Testing/Python/nvflare

$(NVFLARE)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(NVFLARE)
	$(NVFLARE)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" --constraint constraints.txt
	$(NVFLARE)/bin/python -m pip install --quiet --editable '.[nvflare]' --constraint constraints.txt
	touch $@

demo: $(STAMP)
	$(PY) Testing/demo.py --output demo

# The pictures of the module's documentation, and its icons: drawn by the module itself, in the headless host.
screenshots: $(STAMP)
	$(PY) Testing/screenshots.py

# The papers' claims beside what was measured: Docs/results.md, from the runs kept in Docs/results.
results: $(STAMP)
	$(PY) Testing/Experiments/results.py
