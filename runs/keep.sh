#!/usr/bin/env bash
# Keep a training's raw weights as the trunk (dev/trunk, float16), from which the next session's runs/continue.sh goes on.
# Say in dev/LOG.md's table how many samples they have seen.
set -euo pipefail
cd "$(dirname "$0")/.."
FROM=${1:-outputs/trunk/raw} BIN=${BIN:-.venv/bin}
"$BIN/python" - "$FROM" dev/trunk/transformer <<'P'
import json
import sys
from pathlib import Path

from safetensors.torch import load_file

from phantom_s2v.models.tensors import FILE, save_tensors

source, target = map(Path, sys.argv[1:])
target.mkdir(parents=True, exist_ok=True)
save_tensors({name: value.half() for name, value in load_file(source / FILE).items()}, target / FILE, {"format": "pt"})
config = {name: value for name, value in json.loads((source / "config.json").read_text()).items() if name != "_name_or_path"}
(target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
P
