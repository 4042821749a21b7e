#!/usr/bin/env bash
# Train phantom-mini's trunk in the background, at a constant learning rate, from the raw weights that the last session committed
# (dev/trunk), or the packaged ones where there are none. Prints the process id: kill -STOP pauses it, kill -CONT goes on.
# Run again with the same OUT it goes on from its checkpoint. runs/keep.sh makes OUT's weights the trunk to commit.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-outputs/trunk} SEED=${2:-$(date +%Y%m%d%H)}
BIN=${BIN:-.venv/bin}
FROM=dev/trunk/transformer
[ -d "$FROM" ] || FROM=src/phantom_s2v/weights/phantom-mini/transformer
[ -f "${XDG_CACHE_HOME:-$HOME/.cache}/phantom-s2v/emoji/subjects.json" ] || "$BIN/phantom" data emoji
mkdir -p "$OUT"
[ -f "$OUT/seed" ] || echo "$SEED" > "$OUT/seed"
OMP_NUM_THREADS=1 nohup nice -n 10 "$BIN/phantom" train transformer --out "$OUT" --init-from "$FROM" --seed "$(cat "$OUT/seed")" \
  --buckets "${BUCKETS:-128x25x1:0.5,128x1x12:0.35,96x25x2:0.15}" --lr "${LR:-0.01}" >> "$OUT/output.log" 2>&1 &
echo "$!" | tee "$OUT/pid"
