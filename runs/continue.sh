#!/usr/bin/env bash
# A session of training on two cores, needing nobody: triplets are composed anew (another seed gives others), the transformer goes on
# from a model's weights with a warm-up while the rates fall, is packed and evaluated. Run again, every step goes on from where it was.
# After `phantom train move` the model is the moved one. Give it a seed that was not used before.
set -euo pipefail
SEED=${1:?seed of the triplets} STEPS=${2:-6000} OUT=${3:-outputs/continue} MODEL=${4:-phantom-mini}
export OMP_NUM_THREADS=1
FROM=$(python -c 'import sys; from phantom_s2v.presets import model_folder; print(model_folder(sys.argv[1]))' "$MODEL")
[ -f "${XDG_CACHE_HOME:-$HOME/.cache}/phantom-s2v/emoji/subjects.json" ] || phantom data emoji
encode() { phantom data encode --model "$MODEL" --out "$OUT/shards" --seed "$SEED" --shards 400 --plain-share 0.5 --stride 4 --start "$1"; }
encode 0 & encode 2; wait "$!"  # stills have even numbers, clips odd ones
encode 1 & encode 3; wait "$!"
torchrun --nproc-per-node=2 -m phantom_s2v train transformer --latents "$OUT/shards" --model "$MODEL" --init-from "$FROM/transformer" \
  --out "$OUT/transformer" --clips 4 --stills 12 --lengths 1:0.4,3:0.1,7:0.5 --steps "$STEPS" --fall 0.7
phantom train pack --autoencoder "$FROM/autoencoder" --image-encoder "$FROM/image_encoder" \
  --transformer "$OUT/transformer/transformer" --out "$OUT/model"
phantom evaluate run emoji --model "$OUT/model" --limit 40 --out "$OUT/evaluation"
