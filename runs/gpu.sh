#!/usr/bin/env bash
# Train phantom-mini's transformer on a GPU, from the archives of runs/pack_gpu.sh, on a machine without a network whose files stay
# between commands:
#   runs/gpu.sh try                    unpack start.zip; speed, compilation, waits, and 20 s of training on some of the sprites
#   runs/gpu.sh train SECONDS [...]    unpack data.zip, train until 30 s before SECONDS are over; weights come back in parts in $OUT
#   runs/gpu.sh distill SECONDS [...]  distill the guidance of what `train` made into one forward a step, in the same way
#   runs/gpu.sh --smoke ARCHIVES       every path of it on a CPU in a minute; this is what the tests run
# More options go to `phantom train transformer` (--network, --buckets, --lr).
set -euo pipefail
cd "$(dirname "$0")/.."
BEGAN=$(date +%s)
PYTHON=${PYTHON:-python3} KIT=${KIT:-$HOME/phantom-gpu} OUT=${OUT:-outputs/gpu/results} ARCHIVES=${ARCHIVES:-outputs/gpu}
export PYTHONPATH=$PWD/src:$KIT/packages${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=$KIT/compiled
BUCKETS=${BUCKETS:-128x1x192:0.8-0.35,128x25x24:0.2-0.65}
NETWORK=${NETWORK:-10x256x4}
CUDA=(--device cuda --precision bfloat16 --workers 12 --network "$NETWORK" --buckets "$BUCKETS" --references 1:0.72,2:0.28)
[ ! -e "$KIT/uncompiled" ] || export TORCHDYNAMO_DISABLE=1
unpack() { # ARCHIVE; what it holds of wheels comes first, since our own code imports them
  "$PYTHON" -m zipfile -e "$ARCHIVES/$1.zip" "$KIT"
  if [ -d "$KIT/wheels" ]; then find "$KIT/wheels" -name '*.whl' -exec "$PYTHON" -m zipfile -e {} "$KIT/packages" \;; fi
  "$PYTHON" -m phantom_s2v.training.travel unpack "$KIT"
}
run() { # FOLDER MINUTES DECAY_MINUTES OPTIONS...
  "$PYTHON" -m phantom_s2v train transformer --out "$1" --minutes "$2" --decay-minutes "$3" --model "$KIT" --parts "$OUT" "${@:4}"
}
minutes() { awk "BEGIN { print ($BEGAN + $1 - 30 - $(date +%s)) / 60 * $2 }"; } # until 30 s before the end of SECONDS, times SHARE
start() { if [ -d "$KIT/transformer" ]; then echo "--init-from $KIT/transformer"; fi; }

mkdir -p "$OUT"
case "${1:?try, train, distill or --smoke}" in
try)
  unpack start
  timeout 110 "$PYTHON" benchmarks/training_gpu.py --model "$KIT" --root "$KIT/sample" --network "$NETWORK" --buckets "$BUCKETS" 2>&1 | tee "$OUT/speed.txt" || true
  # shellcheck disable=SC2046 - two words or none
  OUT=$KIT/parts run "$KIT/try" 0.35 0 --root "$KIT/sample" $(start) "${CUDA[@]}" "${@:2}" --save-minutes 0.2 --validate-minutes 0.2 || {
    echo "the compiled run failed: training goes on without torch.compile"; touch "$KIT/uncompiled"; }
  ;;
train)
  unpack data
  # shellcheck disable=SC2046
  run "$KIT/run" "$(minutes "${2:?seconds that this command may take}" 1)" "$(minutes "$2" 0.3)" --root "$KIT/emoji" $(start) \
    "${CUDA[@]}" --adam-lr 1e-3 --lr 0.02 --ema-decay 0.999 --save-minutes 2 --validate-minutes 2.5 "${@:3}"
  ;;
distill)
  run "$KIT/distilled" "$(minutes "${2:?seconds that this command may take}" 1)" "$(minutes "$2" 0.8)" --root "$KIT/emoji" \
    --distill-guidance "$KIT/run/transformer" "${CUDA[@]}" --lr 0.01 --ema-decay 0.995 --save-minutes 1 --validate-minutes 5 "${@:3}"
  ;;
--smoke)
  ARCHIVES=${2:?folder of data.zip and start.zip}; shift 2
  unpack start; unpack data
  CPU=(--buckets 32x1x4:0.6,32x5x2:0.4 --save-minutes 0.05 --validate-minutes 0.1 --precision float32)
  "$PYTHON" benchmarks/training_gpu.py --model "$KIT" --root "$KIT/sample" --network 1x48x2 --buckets 32x1x4:1,32x5x2:1 --repeats 1 --device cpu
  # shellcheck disable=SC2046
  run "$KIT/run" 0.15 0.05 --root "$KIT/emoji" $(start) "${CPU[@]}" "$@"
  OUT=$OUT/distilled run "$KIT/distilled" 0.1 0.05 --root "$KIT/emoji" --distill-guidance "$KIT/run/transformer" "${CPU[@]}"
  ;;
*) echo "runs/gpu.sh: try, train, distill or --smoke (got $1)" >&2; exit 2 ;;
esac
