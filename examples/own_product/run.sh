#!/usr/bin/env bash
# Images of one subject -> LoRA -> video:
#   examples/own_product/run.sh PHOTOS NAME [OUT]
# PHOTOS is a folder of two or more images; NAME is what prompts call the subject, such as "red mug". On a GPU:
#   PRESET=wan-1.3b-lora MODEL=phantom-wan-1.3b examples/own_product/run.sh PHOTOS NAME
# Run again, it goes on where it was. STEPS, PROMPT and GENERATE (more options of phantom generate) may be set as well, and MOVING: so
# many clips in which the subject moves are composed of images with a plain background (40 for phantom-mini; 0: stills alone).
set -euo pipefail
PHOTOS=${1:?folder of images} NAME=${2:?name of the subject} OUT=${3:-outputs/own_product}
PRESET=${PRESET:-mini-lora} MODEL=${MODEL:-phantom-mini} PROMPT=${PROMPT:-The $NAME moves to the left on a blue background.}
PHANTOM=${PHANTOM:-phantom}
if [ "$PRESET" = mini-lora ]; then
  MOVING=${MOVING-40}
  [ "${MOVING:-0}" -eq 0 ] || CONFIG=$(dirname "$0")/moving.toml
fi
FIRST=$(find "$PHOTOS" -maxdepth 1 -type f \( -iname '*.png' -o -iname '*.jpg' -o -iname '*.jpeg' -o -iname '*.webp' \) -size +0 | sort | head -1)
[ -n "$FIRST" ] || { echo "$PHOTOS has no .png, .jpg, .jpeg or .webp" >&2; exit 2; }
mkdir -p "$OUT"
# Exit code 3: images that cannot be read were named and left out.
$PHANTOM data import "$PHOTOS" --subject "$NAME" --model "$MODEL" ${MOVING:+--moving "$MOVING"} --out "$OUT/triplets.lance" || [ $? -eq 3 ]
$PHANTOM encode "$OUT/triplets.lance" --model "$MODEL" --out "$OUT/latents.lance"
$PHANTOM train --preset "$PRESET" --model "$MODEL" --latents "$OUT/latents.lance" --out "$OUT/run" ${CONFIG:+--config "$CONFIG"} ${STEPS:+--steps "$STEPS"}
$PHANTOM generate --model "$MODEL" --lora "$OUT/run/lora.safetensors" --reference "$NAME=$FIRST" --prompt "$PROMPT" \
  --out "$OUT/video.mp4" --force ${GENERATE:-}
echo "$OUT/video.mp4"
