"""Time of scoring a clip of 5 s, 30 fps and 480p by the packaged networks, and memory over a folder of videos.

The clip is a photograph of a person that moves over another photograph, so faces are found as well. Loading stands apart, and so
does OpenS2V's flow, which is computed on full frames. Memory is the peak of the resident set of `phantom evaluate score` over a
folder of `--videos` small clips of a cat, in units of the peak over a tenth of them. Last line: one JSON object.

    python benchmarks/score.py [--videos 1000]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from phantom_s2v.evaluation.metrics import measures
from phantom_s2v.evaluation.networks import Wanted, instruments
from phantom_s2v.evaluation.run import Asked, score_one
from phantom_s2v.media import images

SECONDS, FPS, SIZE = 5, 30, (480, 854)
SCORE = """
import sys
from pathlib import Path
from phantom_s2v.cli import app
folder, reference = sys.argv[1:]
asked = ["--reference", "cat=" + reference, "--features", "phantom-mini", "--out", folder + "/page.html"]
app.app(["evaluate", "score", folder, *asked], standalone_mode=False)
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


def clip(image: np.ndarray, size: tuple[int, int], frames: int) -> np.ndarray:
    """An image that goes from left to right over a table, uint8 [F, H, W, 3]."""
    height, width = size
    background = np.asarray(Image.fromarray(skimage.data.coffee()).resize((width, height)))
    side = int(height * 0.7)
    subject = np.asarray(Image.fromarray(image).resize((side, side)))
    video = np.repeat(background[None], frames, 0)
    for frame, left in enumerate(np.linspace(0, width - side, frames).astype(int)):
        video[frame, height - side :, left : left + side] = subject
    return video


def seconds(work) -> float:
    """Least of three runs."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def peak(folder: Path, reference: Path, videos: int) -> int:
    """KiB of the largest resident set while `videos` clips are scored in a process of their own."""
    folder.mkdir()
    source = folder / "0000.mp4"
    images.write_video(source, clip(skimage.data.chelsea(), (72, 128), 13), FPS)
    for number in range(1, videos):
        (folder / f"{number:04d}.mp4").hardlink_to(source)
    command = [sys.executable, "-c", SCORE, str(folder), str(reference)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--videos", type=int, default=1000)
    videos = parser.parse_args().videos
    with tempfile.TemporaryDirectory() as place:
        folder, figures = Path(place), {}
        reference, file = folder / "person.png", folder / "clip.mp4"
        Image.fromarray(skimage.data.astronaut()).save(reference)
        Image.fromarray(skimage.data.chelsea()).save(folder / "cat.png")
        frames = clip(skimage.data.astronaut(), SIZE, SECONDS * FPS)
        images.write_video(file, frames, FPS)
        flow = seconds(lambda: measures.motion_fb(frames))
        for features in ("efficientnet-lite0", "phantom-mini"):
            asked = Asked([("person", reference)], "A person moves to the right.", instruments(Wanted(features=features)))
            score_one(file, asked)  # networks load
            whole = seconds(lambda asked=asked: score_one(file, asked))
            figures[features] = round(whole - flow, 2)
            print(f"{features}: {whole - flow:.2f} s, and {flow:.2f} s for the flow, for {SECONDS} s of video")
        tenth, peaked = (peak(folder / str(n), folder / "cat.png", n) for n in (max(1, videos // 10), videos))
        print(f"peak over {videos // 10} videos {tenth / 1024:.0f} MiB, over {videos} {peaked / 1024:.0f} MiB")
        slowest = max(figures.values())
        print(
            json.dumps(
                {
                    "seconds_without_flow": figures,
                    "seconds_of_flow": round(flow, 2),
                    "share_of_clip": round(slowest / SECONDS, 3),
                    "memory_ratio": round(peaked / tenth, 4),
                    "videos": videos,
                }
            )
        )


if __name__ == "__main__":
    main()
