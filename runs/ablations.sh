#!/usr/bin/env bash
# The papers' ablations on the emoji world (docs/ablations.md): trains and judges the arms that dev/ablations.jsonl lacks, one seed of every
# arm first, in the background on one core. Every arm that ends is a line of that file; a killed one goes on from its checkpoint.
#   runs/ablations.sh            start it, and print the process id: kill -STOP pauses it, kill -CONT goes on
#   runs/ablations.sh --table    print the tables of docs/ablations.md
#   runs/ablations.sh --help     more options
# A finished arm counts for as long as its configuration, weights and data are the same and its code, or a probe's numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin} OUT=${OUT:-outputs/ablations}
export PYTHONPATH=$PWD/src:$PWD/benchmarks OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
case " $* " in *" --table "* | *" --help "*) exec "$BIN/python" -m ablations "$@" ;; esac
[ -f "${XDG_CACHE_HOME:-$HOME/.cache}/phantom-s2v/emoji/subjects.json" ] || "$BIN/phantom" data emoji
mkdir -p "$OUT"
exec 9> "$OUT/lock"
flock --nonblock 9 || { echo "it is running already (process $(cat "$OUT/pid"))" >&2; exit 1; }
nohup nice -n 15 "$BIN/python" -m ablations --scratch "$OUT/runs" "$@" >> "$OUT/output.log" 2>&1 &
echo "$!" | tee "$OUT/pid"
