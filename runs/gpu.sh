#!/usr/bin/env bash
# Train phantom-mini's transformer on a GPU, from the archives of runs/pack_gpu.sh, on a machine without a network whose files stay
# between commands. Each command first extracts the archives that have come since the last one.
#   runs/gpu.sh unpack                 that alone: one transfer can carry one archive
#   runs/gpu.sh try                    speed, kernels and waits of training steps, and 20 s of training
#   runs/gpu.sh train SECONDS [...]    train until 30 s before SECONDS are over; weights come back in parts in $OUT
#   runs/gpu.sh distill SECONDS [...]  distill the guidance of what `train` made into one forward a step, in the same way
#   runs/gpu.sh --smoke ARCHIVES       every path of it on a CPU in a minute; this is what the tests run
# More options go to `phantom train transformer` (--network, --buckets, --lr).
set -euo pipefail
cd "$(dirname "$0")/.."
BEGAN=$(date +%s)
PYTHON=${PYTHON:-python3} KIT=${KIT:-$HOME/phantom-gpu} OUT=${OUT:-outputs/gpu/results} ARCHIVES=${ARCHIVES:-outputs/gpu}
export PYTHONPATH=$PWD/src:$KIT/packages${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=$KIT/compiled
BUCKETS=${BUCKETS:-128x1x192:0.5,128x25x24:0.5} NETWORK=${NETWORK:-10x256x4}
CUDA=(--device cuda --precision bfloat16 --workers 12 --network "$NETWORK" --buckets "$BUCKETS" --references 1:0.72,2:0.28)
unpack() {
  local name
  for name in start data weights; do
    if [ ! -f "$ARCHIVES/$name.zip" ] || cksum "$ARCHIVES/$name.zip" | cmp -s - "$KIT/$name.cksum"; then continue; fi
    "$PYTHON" -m zipfile -e "$ARCHIVES/$name.zip" "$KIT"
    if [ "$name" = start ] && [ -d "$KIT/wheels" ]; then # before our own code, which imports them
      find "$KIT/wheels" -name '*.whl' -exec "$PYTHON" -m zipfile -e {} "$KIT/packages" \;
    fi
    if [ "$name" = data ]; then "$PYTHON" -m phantom_s2v.training.travel unpack "$KIT"; fi
    cksum "$ARCHIVES/$name.zip" > "$KIT/$name.cksum"
  done
}
run() { # FOLDER MINUTES DECAY_MINUTES OPTIONS...
  "$PYTHON" -m phantom_s2v train transformer --out "$1" --minutes "$2" --decay-minutes "$3" --model "$KIT" --root "$KIT/emoji" \
    --parts "$OUT" "${@:4}"
}
minutes() { awk "BEGIN { print ($BEGAN + $1 - 30 - $(date +%s)) / 60 * $2 }"; } # until 30 s before the end of SECONDS, times SHARE
start() { if [ -d "$KIT/transformer" ]; then echo "--init-from $KIT/transformer"; fi; }
train() { # SECONDS OPTIONS...
  # shellcheck disable=SC2046 - two words or none
  run "$KIT/run" "$(minutes "$1" 1)" "$(minutes "$1" 0.3)" $(start) "${CUDA[@]}" --adam-lr 1e-3 --lr 0.02 --ema-decay 0.999 \
    --save-minutes 2 --validate-minutes 2.5 "${@:2}"
}

mkdir -p "$OUT" "$KIT"
case "${1:?unpack, try, train, distill or --smoke}" in
unpack) unpack ;;
try)
  unpack
  timeout 240 "$PYTHON" benchmarks/training_gpu.py --model "$KIT" --root "$KIT/emoji" --network "$NETWORK" --buckets "$BUCKETS" 2>&1 |
    tee "$OUT/speed.txt" || true
  # shellcheck disable=SC2046
  OUT=$KIT/parts run "$KIT/try" 0.35 0 $(start) "${CUDA[@]}" "${@:2}" --save-minutes 0.2 --validate-minutes 0.2
  ;;
train)
  unpack
  train "${@:2}" || { # it goes on from its last checkpoint
    echo "the compiled run failed: training goes on without torch.compile"; TORCHDYNAMO_DISABLE=1 train "${@:2}"; }
  ;;
distill) # with the shapes that `train` compiled for
  run "$KIT/distilled" "$(minutes "${2:?seconds that this command may take}" 1)" "$(minutes "$2" 0.7)" \
    --distill-guidance "$KIT/run/transformer" "${CUDA[@]}" --lr 0.01 --ema-decay 0.995 --save-minutes 1 --validate-minutes 5 "${@:3}"
  ;;
--smoke)
  ARCHIVES=${2:?folder of start.zip and data.zip}; shift 2
  unpack
  CPU=(--buckets 32x1x4:0.6,32x5x2:0.4 --save-minutes 0.05 --validate-minutes 0.1 --precision float32)
  "$PYTHON" benchmarks/training_gpu.py --model "$KIT" --root "$KIT/emoji" --network 1x48x2 --buckets 32x1x4:1,32x5x2:1 --repeats 1 --device cpu
  # shellcheck disable=SC2046
  run "$KIT/run" 0.15 0.05 $(start) "${CPU[@]}" "$@"
  OUT=$OUT/distilled run "$KIT/distilled" 0.1 0.05 --distill-guidance "$KIT/run/transformer" "${CPU[@]}"
  ;;
*) echo "runs/gpu.sh: unpack, try, train, distill or --smoke (got $1)" >&2; exit 2 ;;
esac
