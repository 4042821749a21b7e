#!/usr/bin/env bash
# Pack a training run for a borrowed GPU whose transfer takes 64 MiB at a time, the tracked files among them:
#   runs/pack_gpu.sh [FOLDER of initial transformer weights]   writes outputs/gpu/start.zip, data.zip and, with weights, weights.zip,
#                                                              and takes what the run does not need out of the working tree
#                                                              (git sparse-checkout)
#   runs/pack_gpu.sh --restore                                 puts the tree back
# Without initial weights the run starts from random ones. Nothing of this is committed. docs/training.md has the two commands.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --restore ]; then git sparse-checkout disable; exit; fi
BIN=${BIN:-.venv/bin} OUT=outputs/gpu
WHEELS=(diffusers==0.42.1 importlib_metadata==10.2.0 zipp==4.1.2  # and what diffusers asks for when it is imported
  requests==2.34.2 urllib3==2.8.0 idna==3.20 certifi charset-normalizer==3.5.2 platformdirs==4.14.8)
mkdir -p "$OUT/wheels"
"$BIN/pip" download --quiet --disable-pip-version-check --no-deps --platform any --python-version 3.12 --only-binary=:all: \
  --dest "$OUT/wheels" "${WHEELS[@]}"
ROOT=${XDG_CACHE_HOME:-$HOME/.cache}/phantom-s2v/emoji
[ -f "$ROOT/subjects.json" ] || "$BIN/phantom" data emoji
"$BIN/python" -m phantom_s2v.training.travel pack "$OUT" --root "$ROOT" --model src/phantom_s2v/weights/phantom-mini \
  --wheels "$OUT/wheels" ${1:+--init-from "$1"}
git sparse-checkout set --no-cone '/*' '!/src/phantom_s2v/weights/' '!/src/phantom_s2v/assets/' '!/tests/' '!/docs/' '!/dev/'
echo "tracked files left: $(git ls-files -z | xargs -0 ls -d 2>/dev/null | xargs -d '\n' du -cb | tail -1 | cut -f1) bytes"
