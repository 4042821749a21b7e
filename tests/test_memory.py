"""Memory is flat in the length of a video and in the number of files: peaks of processes of their own."""

import json
import subprocess
import sys

import numpy as np
import pytest

from phantom_s2v.media import videos

PEAK = """
import sys
from pathlib import Path
{work}
status = Path("/proc/self/status")
print(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""
SCORE = """
from phantom_s2v.cli import app
asked = ["--features", "phantom-mini", "--reconstruct", "none", "--out", sys.argv[2]]
app.app(["evaluate", "score", sys.argv[1], *asked], standalone_mode=False)
"""
WATCH = """
import numpy as np
from phantom_s2v.evaluation.footage import watch
from phantom_s2v.evaluation.instruments import Instruments, Thresholds
from phantom_s2v.media.videos import Video
tools = Instruments("none", lambda images: np.ones((len(images), 1), np.float32), Thresholds())
print(watch(Video(Path(sys.argv[1])), [], tools).count, file=sys.stderr)
"""
STORE = """
from phantom_s2v.data.clips import store_video
print(store_video(Path(sys.argv[1]), lambda _: None).count, file=sys.stderr)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")


def peak(work, *arguments):
    """MB of the largest resident set of a process that does the work."""
    command = [sys.executable, "-c", PEAK.format(work=work), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1]) / 1024


def moving(count, height, width):
    """A bright square that goes over a dark background."""
    for number in range(count):
        frame = np.full((height, width, 3), 40, np.uint8)
        left = number * 7 % (width - height // 3)
        frame[height // 3 : 2 * height // 3, left : left + height // 3] = (200, 80, 60)
        yield frame


def write(path, count, height, width):
    videos.encode(path, moving(count, height, width), 25, 30)
    return path


@pytest.mark.parametrize("work", [pytest.param(WATCH, id="score", marks=pytest.mark.long), pytest.param(STORE, id="import")])
def test_length_takes_no_memory(tmp_path, work):
    """Frames are 0.2 MB, so 400 more of them would be 74 MB. In its first hundred frames a decoder still fills its buffers."""
    short, long = write(tmp_path / "short.mp4", 120, 200, 320), write(tmp_path / "long.mp4", 520, 200, 320)
    assert peak(work, long) - peak(work, short) < 25


def test_prompts_lie_on_disk():
    """A hundred prompts' features of 512 tokens each take 800 MB in memory, padded."""
    import torch

    from phantom_s2v.models.wan.text import PromptFeatures

    known = PromptFeatures()
    features = [torch.randn(1, 5 + n, 64) for n in range(3)]
    for name, values in zip("abc", features, strict=True):
        known.keep(name, values)
    for name, values in zip("cab", (features[2], features[0], features[1]), strict=True):
        assert torch.equal(known[name], values)
    assert not any(isinstance(value, torch.Tensor) for value in vars(known).values())


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_minutes_of_480p_are_scored_in_the_memory_of_ten_seconds(tmp_path):
    """The frames of ten minutes are 18 GB. Peaks of one length differ by up to 100 MB, by what the allocator gives back when.

    The short video has the 20 seconds that a report's preview shows at most.
    """
    short, long = write(tmp_path / "short.mp4", 600, 480, 854), write(tmp_path / "long.mp4", 15_000, 480, 854)
    less, more = peak(SCORE, short, tmp_path / "short.html"), peak(SCORE, long, tmp_path / "long.html")
    assert more - less < 150
    row = json.loads((tmp_path / "long.jsonl").read_text().splitlines()[0])
    assert row["frames_looked_at"][-1] == 14_999
    assert any("600 evenly spaced pairs" in note for note in row["notes"])


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_videos_are_scored_in_the_memory_of_few(tmp_path):
    for name, count in (("few", 20), ("many", 400)):
        (tmp_path / name).mkdir()
        first = write(tmp_path / name / "0000.mp4", 13, 72, 128)
        for number in range(1, count):
            (tmp_path / name / f"{number:04d}.mp4").hardlink_to(first)
    few, many = (peak(SCORE, tmp_path / name, tmp_path / f"{name}.html") for name in ("few", "many"))
    assert many < 1.1 * few
