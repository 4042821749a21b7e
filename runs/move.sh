#!/usr/bin/env bash
# phantom-mini's transformer moved to the latents of dev/next/autoencoder and trained on there, then evaluated: one command that
# needs nobody, on two cores. Every step goes on from where it was when it is run again. Give it a seed that was not used before.
set -euo pipefail
SEED=${1:?seed of the triplets} STEPS=${2:-3000} OUT=${3:-outputs/move}
export OMP_NUM_THREADS=1
[ -f "${XDG_CACHE_HOME:-$HOME/.cache}/phantom-s2v/emoji/subjects.json" ] || phantom data emoji
[ -f "$OUT/start/facts.json" ] || phantom train move --autoencoder dev/next/autoencoder --out "$OUT/start"
encode() { phantom data encode --model "$OUT/start" --out "$OUT/shards" --seed "$SEED" "$@"; }
encode --shards 400 --stride 4 & encode --shards 400 --start 2 --stride 4; wait "$!"  # stills have even numbers, clips odd ones
encode --shards 400 --start 1 --stride 4 & encode --shards 400 --start 3 --stride 4; wait "$!"
phantom train transformer --latents "$OUT/shards" --init-from "$OUT/start/transformer" --model "$OUT/start" --out "$OUT/transformer" \
  --steps "$STEPS" --fall 0.7
phantom train pack --autoencoder dev/next/autoencoder --image-encoder "$OUT/start/image_encoder" \
  --transformer "$OUT/transformer/transformer" --out "$OUT/model"
phantom evaluate run emoji --model "$OUT/model" --limit 40 --out "$OUT/evaluation"
