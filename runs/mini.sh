#!/usr/bin/env bash
# Everything that makes phantom-mini, from nothing, on one core: some hours for the encoders, days for the transformer.
# Every command goes on from where it was when it is run again.
set -euo pipefail
OUT=${1:-outputs/mini}
phantom data emoji
phantom train autoencoder --out "$OUT/autoencoder"
phantom train image-encoder --out "$OUT/image-encoder"
PARTS=(--autoencoder "$OUT/autoencoder/autoencoder" --image-encoder "$OUT/image-encoder/image_encoder")
phantom train pack "${PARTS[@]}" --out "$OUT/start"
phantom train transformer --model "$OUT/start" --out "$OUT/transformer"
phantom train pack "${PARTS[@]}" --transformer "$OUT/transformer/transformer" --out "$OUT/model"
phantom evaluate run emoji --model "$OUT/model" --out "$OUT/evaluation"
