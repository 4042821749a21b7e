"""What the stages of the data pipeline cost on this machine, and the first of them against decoding alone.

    python benchmarks/data.py [--seconds 20]

A source video is composed at 1280x720 and 24 frames a second. CPU time of probe, shots and quality together is held against
that of decoding the same source video to the same small RGB frames; the other stages are timed on the emoji source videos of
the check. Memory is measured over 4 and 40 source videos. The last line is JSON: stages_over_decode, memory_growth_mb.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from phantom_s2v.data.pipeline.config import Config, Models
from phantom_s2v.data.pipeline.engine import LOOK, build, chain, process
from phantom_s2v.data.pipeline.frames import stream_frames
from phantom_s2v.data.pipeline.networks import packaged_models
from phantom_s2v.data.synthetic.heldout import held_out
from phantom_s2v.data.synthetic.source_videos import write_source_videos
from phantom_s2v.data.triplets import Rights
from phantom_s2v.media import images

REPEATS = 3


def photographed(path: Path, seconds: int) -> None:
    """A source video that costs an encoder what a photographed one does: drifting noise of many scales, cut every two seconds."""
    rng = np.random.default_rng(0)
    frames = []
    for shot in range(seconds // 2):
        scene: Any = sum(
            cv2.resize(rng.integers(0, 256 // 2**k, (90 // 2**k, 160 // 2**k, 3)).astype(np.float32), (1400, 790))
            for k in range(4)
        )
        for i in range(48):
            grain = rng.normal(0, 4, (180, 320, 1)).astype(np.float32)
            part = scene[i : i + 720, 2 * i : 2 * i + 1280] * (0.4 + 0.1 * (shot % 2))
            frames.append(np.clip(part + cv2.resize(grain, (1280, 720))[..., None], 0, 255).astype(np.uint8))
    images.write_video(path, np.stack(frames), 24)


def cpu(work) -> float:
    """Least CPU time of a few runs, in seconds."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def first_stages(path: Path, config: Config) -> tuple[float, float]:
    """CPU seconds of probe, shots and quality on a source video, and of decoding it to the same frames."""
    none = Models(lambda *_: [], lambda _: np.zeros(0))
    source_video = next(r for r in chain([{"path": str(path)}], LOOK[:1], config, none))

    def stages() -> None:
        for _ in chain([{"path": str(path)}], LOOK, config, none):
            pass

    def decode() -> None:
        for _ in stream_frames(source_video, config.work_side):
            pass

    return cpu(stages), cpu(decode)


def peak_of(folder: Path, source_videos: int) -> float:
    """Peak memory in MB of a run over so many source videos, in a process of its own."""
    code = f"import data; data.run_source_videos({str(folder)!r}, {source_videos})"
    out = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return float(out.stdout.split()[-1])


def run_source_videos(folder: str, count: int) -> None:
    """Build triplets of the first source videos and print the peak memory in MB."""
    with tempfile.TemporaryDirectory() as place:
        paths = sorted(Path(folder).glob("*.mp4"))[:count]
        build(paths, Path(place) / "t.lance", Config(), packaged_models, Rights("", "MIT"))
    status = Path("/proc/self/status").read_text()  # the peak of getrusage would be the parent's, from before exec
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20)
    seconds = parser.parse_args().seconds
    config = Config()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "source_video.mp4"
        photographed(path, seconds)
        stages, decode = first_stages(path, config)
        print(f"1280x720, {seconds} s: probe, shots and quality {stages:.2f} s of CPU, decoding alone {decode:.2f} s")
        folder = Path(place) / "source_videos"
        write_source_videos(folder, held_out(), 40, 5)
        models = packaged_models()
        spent: dict[str, float] = {}
        clips = length = 0.0
        list(process(str(next(folder.glob("*.mp4"))), config, models))  # the models load
        for each in sorted(folder.glob("*.mp4"))[:10]:
            *_, source_video = process(str(each), config, models)
            clips += source_video["clips"]
            length += images.read_video(each)[0].shape[0] / source_video["fps"]
            for name, value in source_video["seconds"].items():
                spent[name] = spent.get(name, 0.0) + value
        for name, value in spent.items():
            hourly, rate = 3600 * clips / value, length / value
            print(f"{name:9} {hourly:12,.0f} clips an hour {rate:8,.0f} s of video a second (emoji source videos, 128x128)")
        few, many = peak_of(folder, 4), peak_of(folder, 40)
        print(f"peak memory over 4 source videos {few:.0f} MB, over 40 source videos {many:.0f} MB")
    print(json.dumps({"stages_over_decode": round(stages / decode, 3), "memory_growth_mb": round(many - few, 1)}))


if __name__ == "__main__":
    main()
