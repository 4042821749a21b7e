#!/usr/bin/env bash
# A branch of the trunk to ship: the learning rate falls to zero over STEPS, then guidance is distilled into one forward a step over
# DISTIL_STEPS, the average is packed and evaluated on 40 subjects. Run again, every step goes on from where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
STEPS=${1:?optimizer steps over which the rate falls} OUT=${2:-outputs/ship} FROM=${3:-dev/trunk/transformer} SEED=${4:-$(date +%Y%m%d%H)1}
DISTIL_STEPS=${DISTIL_STEPS:-$STEPS}
BIN=${BIN:-.venv/bin} MINI=src/phantom_s2v/weights/phantom-mini
mkdir -p "$OUT"
[ -f "$OUT/seed" ] || echo "$SEED" > "$OUT/seed"
train() { # FOLDER OPTIONS...
  "$BIN/phantom" train transformer --out "$OUT/$1" "${@:2}" --buckets "${BUCKETS:-128x1x12:0.6,128x25x1:0.4}" --ema-decay 0.99
}
train transformer --init-from "$FROM" --seed "$(cat "$OUT/seed")" --steps "$STEPS" --decay-fraction 1
train distilled --distill-guidance "$OUT/transformer/transformer" --seed "$(cat "$OUT/seed")1" --steps "$DISTIL_STEPS" --decay-fraction 0.7
"$BIN/phantom" train pack --autoencoder "$MINI/vae" --image-encoder "$MINI/image_encoder" \
  --transformer "$OUT/distilled/transformer" --out "$OUT/model"
"$BIN/phantom" evaluate run emoji --model "$OUT/model" --limit 40 --out "$OUT/evaluation"
