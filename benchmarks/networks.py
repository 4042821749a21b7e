"""Clips a second of each network of the data pipeline, and the share of the time in which the GPU waits.

    python benchmarks/networks.py [--captioner FOLDER] [--object-detector FOLDER] [--segmenter FOLDER] [--embedder FOLDER]

A clip is three stills of 1280x720 (and, for the segmenter, frames between them: four a second of nine seconds). Networks that are
not given are tiny random ones of the same classes, so that the script runs anywhere; their figures say nothing but that it does.
Idle is the share of the time outside of the networks' forward passes, by CUDA's events: preparing images, tokenizing, copying and
waiting; it is null on a CPU. The last line is JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "vision"))
import tiny_networks  # type: ignore[import-not-found]

from phantom_s2v.data.detectors.phrases import detect_phrases
from phantom_s2v.data.pipeline.batches import AT_ONCE
from phantom_s2v.vision.detect import OpenVocabularyDetector
from phantom_s2v.vision.embed import Embedder
from phantom_s2v.vision.factory import cut_chances
from phantom_s2v.vision.segment import ClipSegmenter
from phantom_s2v.vision.transformers import default_device
from phantom_s2v.vision.vlm import VisionLanguageModel

TINY = {"captioner": "qwen3-vl", "object_detector": "grounding-dino", "segmenter": "sam2", "embedder": "dinov2"}
BETWEEN = 16  # frames between two stills
PHRASES = ["gray wolf", "wolf", "red mug"]


class Busy:
    """Seconds that CUDA spends in the forward passes of a network."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.events: list[tuple[Any, Any]] = []
        network.register_forward_pre_hook(lambda *_: self._begin())
        network.register_forward_hook(lambda *_: self.events[-1][1].record())

    def _begin(self) -> None:
        self.events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        self.events[-1][0].record()

    def seconds(self) -> float:
        torch.cuda.synchronize()
        total = sum(begin.elapsed_time(end) for begin, end in self.events) / 1000
        self.events.clear()
        return total


def measured(work: Callable[[], Any], network: torch.nn.Module, clips: int, each: int = 1) -> dict[str, float | None]:
    """Clips a second of `work`, of `each` clips, after one that is not counted, and the share of the time in which the GPU is
    idle.
    """
    on_cuda = default_device().type == "cuda"
    busy = Busy(network) if on_cuda else None
    work()
    if busy:
        busy.seconds()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    rounds = -(-clips // each)
    for _ in range(rounds):
        work()
    worked = busy.seconds() if busy else None
    seconds = time.perf_counter() - start
    memory = round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_cuda else None
    idle = None if worked is None else round(1 - min(1.0, worked / seconds), 3)
    return {"clips_per_second": round(rounds * each / seconds, 3), "idle_share": idle, "memory_gib": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in TINY:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path)
    parser.add_argument("--clips", type=int, default=20)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    stills = list(rng.integers(0, 256, (3, 720, 1280, 3), dtype=np.uint8))
    steps: list[tuple[int | None, np.ndarray]] = []
    for number, still in enumerate(stills):
        steps += [(number, still)] + [(None, still)] * (BETWEEN if number + 1 < len(stills) else 0)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: getattr(asked, name) or tiny_networks.make(tiny, Path(scratch) / tiny) for name, tiny in TINY.items()}
        vlm, detector = VisionLanguageModel(folders["captioner"]), OpenVocabularyDetector(folders["object_detector"])
        segmenter, embedder = ClipSegmenter(folders["segmenter"]), Embedder(folders["embedder"])
        box = [[((320, 180, 960, 540), "gray wolf", 0.9)], [], []]
        cuts, frames = cut_chances(), rng.integers(0, 256, (100, 27, 48, 3), dtype=np.uint8)
        found = {
            "captioner": measured(lambda: vlm.captions([stills] * AT_ONCE), vlm.model, asked.clips, AT_ONCE),
            "object_detector": measured(lambda: detector(stills, PHRASES), detector.model, asked.clips),
            "segmenter": measured(
                lambda: detect_phrases(lambda *_: box, segmenter, None, stills, PHRASES, steps), segmenter.model, asked.clips
            ),
            "embedder": measured(lambda: embedder(stills), embedder.model, asked.clips),
        }
        start = time.perf_counter()
        for _ in range(asked.clips):
            cuts(frames)
        found["transnetv2"] = {"windows_per_second": round(asked.clips / (time.perf_counter() - start), 3)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    tiny_ones = [name for name in TINY if getattr(asked, name) is None]
    for name, values in found.items():
        print(f"{name:16} {'tiny ' if name in tiny_ones else ''}{values}")
    print(json.dumps({"device": device, "clips": asked.clips, "tiny": tiny_ones, **found}))


if __name__ == "__main__":
    main()
