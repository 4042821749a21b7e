#!/usr/bin/env bash
# A branch of the trunk to ship: the learning rate falls to zero over STEPS, then the average is packed and evaluated on 40 subjects.
# Run again, every step goes on from where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
STEPS=${1:?optimizer steps over which the rate falls} OUT=${2:-outputs/ship} FROM=${3:-dev/trunk/transformer} SEED=${4:-$(date +%Y%m%d%H)1}
BIN=${BIN:-.venv/bin} MINI=src/phantom_s2v/weights/phantom-mini
mkdir -p "$OUT"
[ -f "$OUT/seed" ] || echo "$SEED" > "$OUT/seed"
"$BIN/phantom" train transformer --out "$OUT/transformer" --init-from "$FROM" --seed "$(cat "$OUT/seed")" --steps "$STEPS" \
  --buckets "${BUCKETS:-128x1x12:0.6,128x25x1:0.4}" --decay-fraction 1 --ema-decay 0.99
"$BIN/phantom" train pack --autoencoder "$MINI/autoencoder" --image-encoder "$MINI/image_encoder" \
  --transformer "$OUT/transformer/transformer" --out "$OUT/model"
"$BIN/phantom" evaluate run emoji --model "$OUT/model" --limit 40 --out "$OUT/evaluation"
