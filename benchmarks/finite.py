"""What it costs to look for NaN and infinity: per solver step as a share of the step, and when weights load.

    python benchmarks/finite.py [--steps 16] [--repeats 5]

A step's checks are the sums over its latents and over its velocity. They are timed by themselves, since their share of a step is
far below the noise of timing whole steps with and without them; `loading` is the share of all weights' checks in loading the
model. phantom-mini at its own size on this machine. Last line: one JSON object with finite_over_step and finite_over_loading.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise

import torch

from phantom_s2v.data.synthetic.heldout import evaluated, held_out, still_path
from phantom_s2v.models.finite import all_finite
from phantom_s2v.models.registry import model_folder
from phantom_s2v.pipeline.batch import build_request
from phantom_s2v.pipeline.generate import generate
from phantom_s2v.pipeline.loading import load_models


def least(work: Callable[[], object], repeats: int) -> float:
    """Least seconds of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    folder = model_folder("phantom-mini")
    loading = least(lambda: load_models(folder), 2)
    pipe = load_models(folder)
    reference = str(still_path(evaluated(held_out())[0].key))
    ask = {"prompt": "The subject moves up.", "reference": [reference], "num_inference_steps": arguments.steps}
    request = build_request(ask, pipe.preset)
    times: list[float] = []
    generate(request, pipe, lambda *_: times.append(time.perf_counter()))
    step = min(after - before for before, after in pairwise(times))
    latents = torch.randn(1, pipe.vae.config["z_dim"], (request.num_frames + 3) // 4, request.height // 8, request.width // 8)
    checks = least(lambda: [all_finite(latents) and all_finite(latents) for _ in range(100)], arguments.repeats) / 100
    parts = (pipe.transformer, pipe.vae, pipe.image_encoder, pipe.reader.model)
    weights = [value for part in parts for value in part.state_dict().values()]
    whole = least(lambda: [all_finite(value) for value in weights], arguments.repeats)
    count = sum(value.numel() for value in weights)
    print(f"a step takes {1e3 * step:.1f} ms, its checks {1e6 * checks:.0f} us; those of {count:,} weights {whole:.3f} s")
    print(json.dumps({"finite_over_step": round(checks / step, 6), "finite_over_loading": round(whole / loading, 4)}))


if __name__ == "__main__":
    main()
