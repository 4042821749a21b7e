#!/usr/bin/env bash
# Train phantom-mini's transformer on a GPU, from the archives of runs/pack_gpu.sh, on a machine without a network:
#   runs/gpu.sh data                   unpack data.zip; the folder survives between commands
#   runs/gpu.sh train SECONDS [...]    unpack start.zip, a minute of smoke (compile, speed, one saved file, loss falls), then train until
#                                      90 s before SECONDS are over; weights come back in parts in $OUT every two minutes
#   runs/gpu.sh --smoke ARCHIVES       every path of it on a CPU in a minute; this is what the tests run
# More options go to `phantom train transformer` (--network, --buckets, --lr).
set -euo pipefail
cd "$(dirname "$0")/.."
BEGAN=$(date +%s)
PYTHON=${PYTHON:-python3} KIT=${KIT:-$HOME/phantom-gpu} OUT=${OUT:-outputs/gpu/results} ARCHIVES=${ARCHIVES:-outputs/gpu}
export PYTHONPATH=$PWD/src:$KIT/packages${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TORCHINDUCTOR_CACHE_DIR=$KIT/compiled
unpack() { "$PYTHON" -m phantom_s2v.training.travel unpack "$ARCHIVES/$1.zip" "$KIT"; }
start() { [ -d "$KIT/transformer" ] && echo "--init-from $KIT/transformer" || true; }
run() { # FOLDER MINUTES OPTIONS...
  local folder=$1 minutes=$2; shift 2
  # shellcheck disable=SC2046 - two words or none
  "$PYTHON" -m phantom_s2v train transformer --out "$folder" --minutes "$minutes" --model "$KIT" --root "$KIT/emoji" $(start) \
    --parts "$OUT" "$@"
}

mkdir -p "$OUT"
case "${1:?data, train or --smoke}" in
data) unpack data ;;
train)
  SECONDS_LEFT=${2:?seconds that this command may take}; shift 2
  unpack start
  CUDA=(--device cuda --precision bfloat16 --workers 12 --adam-lr 1e-3 --lr 0.02 --ema-decay 0.999
    --buckets 96x1x256:0.15,128x1x192:0.45,128x9x40:0.15,128x25x16:0.25)
  run "$KIT/smoke" 0.5 "${CUDA[@]}" "$@" --save-minutes 0.4 || {
    echo "the compiled smoke failed: training goes on without torch.compile"; export TORCHDYNAMO_DISABLE=1; }
  LEFT=$((BEGAN + SECONDS_LEFT - 90 - $(date +%s)))
  run "$KIT/run" "$(awk "BEGIN { print $LEFT / 60 }")" "${CUDA[@]}" "$@" --decay-minutes "$(awk "BEGIN { print $LEFT / 240 }")" \
    --save-minutes 2 --validate-minutes 2
  ;;
--smoke)
  ARCHIVES=${2:?folder of data.zip and start.zip}; shift 2
  unpack data; unpack start
  run "$KIT/run" 0.15 --buckets 32x1x4:0.6,32x5x2:0.4 --save-minutes 0.05 --validate-minutes 0.1 --decay-minutes 0.05 --precision float32 "$@"
  ;;
*) echo "runs/gpu.sh: data, train or --smoke (got $1)" >&2; exit 2 ;;
esac
