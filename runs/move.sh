#!/usr/bin/env bash
# phantom-mini's transformer moved to the latents of dev/next/autoencoder and trained on there, then evaluated: one command that
# needs nobody, on two cores. Every step goes on from where it was when it is run again. Give it a seed that was not used before.
set -euo pipefail
SEED=${1:?seed of the triplets} STEPS=${2:-6000} OUT=${3:-outputs/move}
export OMP_NUM_THREADS=1
[ -f "${XDG_CACHE_HOME:-$HOME/.cache}/phantom-s2v/emoji/subjects.json" ] || phantom data emoji
[ -f "$OUT/start/facts.json" ] || phantom train move --autoencoder dev/next/autoencoder --out "$OUT/start"
FROM=dev/next/transformer  # what has learned in the new latents already
[ -d "$FROM" ] || FROM="$OUT/start/transformer"
encode() { phantom data encode --model "$OUT/start" --out "$OUT/shards" --seed "$SEED" --shards 400 --stride 4 --start "$1"; }
encode 0 & encode 2; wait "$!"  # stills have even numbers, clips odd ones
encode 1 & encode 3; wait "$!"
torchrun --nproc-per-node=2 -m phantom_s2v train transformer --latents "$OUT/shards" --init-from "$FROM" --model "$OUT/start" \
  --out "$OUT/transformer" --clips 4 --stills 12 --steps "$STEPS" --fall 0.7
phantom train pack --autoencoder dev/next/autoencoder --image-encoder "$OUT/start/image_encoder" \
  --transformer "$OUT/transformer/transformer" --out "$OUT/model"
phantom evaluate run emoji --model "$OUT/model" --limit 40 --out "$OUT/evaluation"
