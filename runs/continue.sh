#!/usr/bin/env bash
# A session of training from the packaged weights: latents are composed anew (other seeds give other triplets), the
# transformer goes on with a warm-up, and the result is packed beside. Give it a seed that was not used before.
set -euo pipefail
SEED=${1:?seed of the triplets} OUT=${2:-outputs/continue}
MODEL=$(python -c 'from phantom_s2v.presets import MODELS; print(MODELS["phantom-mini"])')
[ -f "${XDG_CACHE_HOME:-$HOME/.cache}/phantom-s2v/emoji/subjects.json" ] || phantom data emoji
phantom data encode --out "$OUT/shards" --seed "$SEED" --shards 800
phantom train transformer --latents "$OUT/shards" --init-from "$MODEL/transformer" --out "$OUT/transformer"
