"""The estimate against measured runs here: phantom-mini, a tiny Wan, and two layers of Wan's real width.

Each case runs in a process of its own: seconds from reading the images to the pixels, peak of the resident set above the level
after imports. Last line: one JSON object with estimate / measured of both.

    python benchmarks/estimate.py
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]
CASES = {
    "mini": {"size": "64x64"},
    "mini, 97 frames": {"num_frames": 97},
    "mini, 4 steps": {"num_inference_steps": 4},
    "tiny": {"size": "128x128", "num_frames": 17, "num_inference_steps": 10},
    "tiny, long": {"size": "128x128", "num_frames": 65, "num_inference_steps": 6},
    "wide": {"size": "256x256", "num_frames": 17, "num_inference_steps": 2},
}


def folder_of(case: str, root: Path) -> Path:
    """The model of a case, made where it is not there yet."""
    import native  # type: ignore[import-not-found]  # of tests

    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.models.wan import convert

    if case.startswith("mini"):
        return model_folder("phantom-mini")
    kind = case.split(",")[0]
    out = root / kind
    if not out.exists():
        (root / f"{kind}-native").mkdir()
        wan, phantom = native.write(root / f"{kind}-native")
        if kind == "wide":
            import torch

            native.FFN, native.FREQ = 8960, 256
            torch.save(native.transformer(dim=1536, layers=2), phantom)
            convert.KNOWN[1536] = (12, 2)
        convert.convert(wan, phantom, out, lambda *_: None)
    return out


def child(case: str, root: Path) -> None:
    """Estimate, then measure; prints JSON."""
    from load_memory import measured

    from phantom_s2v.data.synthetic.heldout import evaluated, held_out, still_path
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import load_preset
    from phantom_s2v.pipeline.batch import build_request
    from phantom_s2v.pipeline.cost.measure import estimate
    from phantom_s2v.pipeline.generate import generate, load_for

    folder = folder_of(case, root)
    preset = load_preset(folder)
    image = str(still_path(evaluated(held_out())[0].key))
    options = {"prompt": "The subject moves to the left.", "reference": [image], "untrained_size": True, **CASES[case]}
    request = build_request(options, preset)
    found = estimate(request, preset, folder, Placement())
    seconds = 0.0

    def work() -> None:
        nonlocal seconds
        pipe = load_for([request], folder)  # loading of the text encoder is not estimated
        start = time.perf_counter()
        generate(request, pipe)
        seconds = time.perf_counter() - start

    peak = measured(work)
    print(json.dumps({"seconds": [found.seconds, seconds], "bytes": [found.peak, peak]}))


def main() -> None:
    if len(sys.argv) > 1:
        child(sys.argv[1], Path(sys.argv[2]))
        return
    result = {}
    with tempfile.TemporaryDirectory() as root:
        for case in CASES:
            done = subprocess.run([sys.executable, __file__, case, root], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            values = json.loads(done.stdout.splitlines()[-1])
            (s, s_real), (b, b_real) = values["seconds"], values["bytes"]
            print(f"{case}: {s:.2f} s of {s_real:.2f} s, {b / 1e6:.0f} MB of {b_real / 1e6:.0f} MB")
            result[case] = {
                "seconds": round(s / s_real, 3),
                "memory": round(b / b_real, 3),
                "memory_off_mb": round((b - b_real) / 1e6),
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
