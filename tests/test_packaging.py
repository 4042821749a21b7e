"""What an installation has: one sentence for a missing extra, and a wheel that works outside the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from phantom_s2v.errors import EXTRAS, missing_extra

ROOT = Path(__file__).parents[1]
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
sys.argv = ["phantom", *{arguments!r}]
from phantom_s2v.cli import main
main()
"""


@pytest.mark.parametrize(("blocked", "arguments", "extra"), [
    (("tensorboard",), ("train", "transformer", "--out", "out"), "train"),
    (("lance",), ("data", "show", "triplets.lance"), "data"),
    (("cv2",), ("evaluate", "score", "v.mp4"), "data"),
    (("fastapi",), ("evaluate", "rate", "--help"), None),
])  # fmt: skip
def test_a_missing_extra_is_one_sentence_with_the_command(tmp_path, blocked, arguments, extra):
    code = BLOCK.format(blocked=blocked, arguments=arguments)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    if extra is None:
        assert done.returncode == 0, done.stderr  # help needs no extra
        return
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert f'pip install "phantom-s2v[{extra}]"' in done.stderr
    assert not list(tmp_path.iterdir())


def test_other_import_errors_are_defects():
    assert missing_extra(ModuleNotFoundError("No module named 'torch'", name="torch")) is None
    assert missing_extra(ImportError("no name")) is None


def test_every_extra_is_declared():
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(declared)


@pytest.mark.long
def test_a_wheel_works_outside_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", tmp_path / "site", str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ask = [
        "generate",
        "--prompt",
        "The subject moves up.",
        "--num-frames",
        "1",
        "--num-inference-steps",
        "2",
        "--out",
        tmp_path / "v.mp4",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "phantom_s2v", *ask], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "v.mp4").stat().st_size > 500
    assert (tmp_path / "site" / "phantom_s2v" / "py.typed").is_file()
