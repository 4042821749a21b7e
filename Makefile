# Two commands for a stranger: `make demo` makes a video, `make test` runs every check.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Where pip would take a CUDA build of torch, PIP_EXTRA_INDEX_URL can name an index of CPU wheels; pip reads it itself.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
IMAGE := src/phantom_s2v/assets/held-out/stills/1f984.webp

# One thread a worker: on two cores more threads only wait for each other. A file's tests stay in one worker, which makes its fixtures once.
WORKERS ?= 2

.PHONY: demo test test-long clean

demo: $(VENV)/demo.stamp
	@mkdir -p outputs
	$(BIN)/phantom generate --reference $(IMAGE) --prompt "The large subject moves to the right on a yellow background." --out outputs/demo.mp4 --force
	@echo "The video is outputs/demo.mp4, a sheet of its frames is outputs/demo.sheet.png, its metadata are outputs/demo.metadata.json."

test: $(VENV)/test.stamp
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/pytest --quiet --numprocesses $(WORKERS) --dist loadfile -m "not long"
	OMP_NUM_THREADS=2 $(BIN)/pytest --quiet -m "threads and not long"

test-long: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest --quiet --numprocesses $(WORKERS) --timeout 1800 -m long

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
