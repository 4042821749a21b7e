# Two commands for a stranger: `make demo` makes a video, `make test` runs every check.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Where pip would take a CUDA build of torch, PIP_EXTRA_INDEX_URL can name an index of CPU wheels; pip reads it itself.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PICTURE := src/phantom_s2v/assets/held-out/stills/1f984.webp

.PHONY: demo test clean

demo: $(VENV)/demo.stamp
	@mkdir -p outputs
	$(BIN)/phantom generate --reference $(PICTURE) --prompt "The large subject moves to the right on a yellow background." --out outputs/demo.mp4
	@echo "The video is outputs/demo.mp4, a sheet of its frames is outputs/demo.png, its record is outputs/demo.json."

test: $(VENV)/test.stamp
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest --quiet

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing (about 1.3 GB with a CPU build of torch, a few minutes) ..."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(INSTALL) --editable '.[dev]'
	$(BIN)/phantom models fetch
	@touch $@

clean:
	rm -rf $(VENV) outputs
