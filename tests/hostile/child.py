"""Hostile inputs against entry points, in a process of its own with limits: `python child.py FOLDER START COUNT`.

Prints a JSON line for each run: entry, kind, exit code (null where an exception escaped), what was said, seconds, megabytes.
"""

import contextlib
import io
import itertools
import json
import os
import random
import resource
import struct
import sys
import tarfile
import time
import zipfile
from pathlib import Path

ROOM = 3 << 30  # bytes of address space beyond what imports take
EVIL = "x\x1b[2J\u202e[red]\r\nphantom: all is well"


def deep(opening, closing=""):
    return (opening * 100_000 + closing).encode()


def bomb_pth(_):
    """A pickle that claims a tensor of 4 TB, of one stored number."""
    import torch

    target = io.BytesIO()
    torch.save({name: torch.zeros(1).expand(1_000_000, 1_000_000) for name in ("layers.0.weight", "a")}, target)
    return target.getvalue()


def packed_pth(_):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))
    return target.getvalue()


def sparse_tar(_):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("a.mp4")
        entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a.mp4",
                             "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": f"0,0,{1 << 40},0", "GNU.sparse.numblocks": "2"}  # fmt: skip
        tar.addfile(entry, io.BytesIO())
    return target.getvalue()


def image(random_, form="PNG", size=(40, 40)):
    from PIL import Image

    target = io.BytesIO()
    Image.new("RGB", size, tuple(random_.randbytes(3))).save(target, form)
    return target.getvalue()


def damaged(content, random_):
    """Some bytes changed, or the end cut off."""
    content = bytearray(content)
    for _ in range(random_.randint(1, 8)):
        content[random_.randrange(len(content))] = random_.randrange(256)
    return bytes(content[: random_.randint(1, len(content))])


def video(random_, size=48, count=6):
    import numpy as np

    from phantom_s2v.media import images

    return images.encode_video(np.full((count, size, size, 3), random_.randrange(256), np.uint8), 8)


KINDS = {
    "empty": lambda r: b"",
    "zeros": lambda r: bytes(5000),
    "noise": lambda r: r.randbytes(r.randint(1, 3000)),
    "text": lambda r: b"hello\n",
    "latin": lambda r: b"caf\xe9\n",
    "deep lists": lambda r: deep("["),
    "deep objects": lambda r: deep('{"a":'),
    "deep tables": lambda r: b"[similarity]\na = " + deep("["),
    "a number": lambda r: b"9" * 10_000,
    "not a number": lambda r: b'{"a": NaN, "id": 1e999}',
    "a list": lambda r: b"[1, 2]",
    "wrong types": lambda r: json.dumps({"id": [], "prompt": {}, "reference": 5, "request": [], "metadata": 1, "a": {"b": []}}).encode(),
    "large values": lambda r: json.dumps(
        {"_class_name": "WanTransformer3DModel", "num_attention_heads": 10**9, "attention_head_dim": 10**9, "depth": 10**8,
         "num_layers": 10**8, "frames": 10**9, "prompt": "a", "id": "a",
         "request": {"prompt": "a", "references": [], "height": 64, "width": 64, "num_frames": 10**9 + 1, "fps": 8, "seed": 0, "num_inference_steps": 4,
                     "solver": "euler", "shift": 1.0, "image_guidance_scale": 1.0, "guidance_scale": 1.0}}
    ).encode(),
    "evil text": lambda r: json.dumps({"id": EVIL, "prompt": EVIL, "reference": [EVIL], "request": EVIL, EVIL: EVIL}).encode(),
    "eps": lambda r: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\nshowpage\n",
    "ffconcat": lambda r: b"ffconcat version 1.0\nfile /etc/passwd\n",
    "playlist": lambda r: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "gzip": lambda r: __import__("gzip").compress(bytes(50_000_000)),
    "packed pickle": packed_pth,
    "claiming pickle": bomb_pth,
    "code pickle": lambda r: b"cos\nsystem\n(S'touch ran'\ntR.",
    "safetensors": lambda r: struct.pack("<Q", 1 << 60) + b"{}",
    "sparse tar": sparse_tar,
    "tar": lambda r: damaged(sparse_tar(r) + bytes(2000), r),
    "image": lambda r: damaged(image(r, r.choice(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])), r),
    "wide image": lambda r: image(r, size=(4000, 3)),
    "pixels": lambda r: b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d49484452 00020000 00020000 0802000000") + bytes(4),
    "video": lambda r: damaged(video(r), r),
}  # fmt: skip
FOLDERS = ("pipe", "loop", "folder", "missing")  # that stand where a file should


def lay(path: Path, kind: str, random_: random.Random) -> Path:
    """Put a hostile input in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(KINDS[kind](random_))
    return path


def model_folder(place, kind, random_):
    """A model folder of which one file is hostile."""
    name = random_.choice(["model_index.json", "transformer/config.json"])
    lay(place / name, kind, random_)
    (place / "transformer").mkdir(exist_ok=True)
    return place


ENTRIES = {  # name -> arguments of phantom, with the hostile input laid
    "reference": lambda p, k, r: ["generate", "--prompt", "a", "--reference", lay(p / "r.png", k, r), "--out", p / "o.mp4"],
    "cutout": lambda p, k, r: ["generate", "--prompt", "a", "--reference", lay(p / "r.png", k, r), "--cutout", "--num-frames", "3"],
    "first frame": lambda p, k, r: ["generate", "--prompt", "a", "--first-frame", lay(p / "r.png", k, r), "--out", p / "o.mp4"],
    "from": lambda p, k, r: ["generate", "--from", lay(p / "r.json", k, r), "--out", p / "o.mp4"],
    "requests": lambda p, k, r: ["generate", "--requests", lay(p / "r.jsonl", k, r), "--out", p],
    "model": lambda p, k, r: ["generate", "--prompt", "a", "--model", model_folder(p / "m", k, r), "--out", p / "o.mp4"],
    "estimate": lambda p, k, r: ["estimate", "--prompt", "a", "--model", model_folder(p / "m", k, r)],
    "rephraser": lambda p, k, r: ["generate", "--prompt", "a", "--rephrase", lay(p / "m" / "config.json", k, r).parent, "--out", p / "o.mp4"],
    "kpi": lambda p, k, r: ["evaluate", "score", p, "--kpi", lay(p / "k.toml", k, r)],
    "suite": lambda p, k, r: ["evaluate", "run", lay(p / "s" / "cases.jsonl", k, r).parent, "--out", p / "out"],
    "opens2v": lambda p, k, r: ["evaluate", "run", "opens2v", lay(p / "s.json", k, r), "--out", p / "out"],
    "compare": lambda p, k, r: ["evaluate", "compare", lay(p / "a.jsonl", k, r), p / "a.jsonl"],
    "votes": lambda p, k, r: ["evaluate", "votes", lay(p / "v.sqlite", k, r)],
    "tar": lambda p, k, r: ["data", "import", lay(p / "in" / "a.tar", k, r).parent, "--out", p / "s.lance"],
    "facts": lambda p, k, r: ["data", "import", lay(p / "in" / "a.json", k, r).parent, "--out", p / "s.lance"],
    "captioned": lambda p, k, r: ["data", "import", lay(p / "in" / "a.mp4", k, r).parent, "--captioned", "--out", p / "s.lance"],
    "phantom-data": lambda p, k, r: ["data", "import", lay(p / "a.parquet", k, r), "--published", "phantom-data", "--clips", p, "--out", p / "s.lance"],
    "opens2v data": lambda p, k, r: ["data", "import", lay(p / "a.json", k, r), "--published", "opens2v", "--clips", p, "--out", p / "s.lance"],
    "build": lambda p, k, r: ["data", "build", lay(p / "in" / "a.mp4", k, r).parent, "--out", p / "s.lance"],
    "thresholds": lambda p, k, r: ["data", "build", p, "--config", lay(p / "c.toml", k, r), "--out", p / "s.lance"],
    "dataset": lambda p, k, r: ["data", "show", lay(p / "s.lance", k, r)],
    "aesthetic": lambda p, k, r: ["models", "convert-aesthetic", lay(p / "a.pth", k, r), p / "a.safetensors"],
    "convert": lambda p, k, r: ["convert", "--wan", p, "--phantom", lay(p / r.choice(["a.pth", "a.safetensors"]), k, r), "--out", p / "m"],
}  # fmt: skip
FIFO_IS_NAMED = {
    "from",
    "requests",
    "kpi",
    "opens2v",
    "opens2v data",
    "compare",
    "thresholds",
}  # a user may well give <(command) there


def call(arguments):
    """(exit code or None, stdout, stderr) of the command line."""
    from phantom_s2v import cli

    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    sys.argv = ["phantom", *map(str, arguments)]
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    for stream in (out, err):
        stream.flush()
    return code, out.buffer.getvalue().decode(errors="replace"), err.buffer.getvalue().decode(errors="replace")


def main(folder: Path, start: int, count: int) -> None:
    import torch  # noqa: F401 - what is imported does not count

    import phantom_s2v.cli
    import phantom_s2v.data.formats.published
    import phantom_s2v.data.pipeline.networks
    import phantom_s2v.evaluation.networks
    import phantom_s2v.pipeline.batch  # noqa: F401

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    pairs = sorted(itertools.product(ENTRIES, (*KINDS, *FOLDERS)))
    random.Random(0).shuffle(pairs)
    pairs = [(entry, kind) for entry, kind in pairs if not (kind == "pipe" and entry in FIFO_IS_NAMED)]
    for number in range(start, start + count):
        entry, kind = pairs[number % len(pairs)]
        place = folder / f"{number}"
        place.mkdir()
        os.chdir(place)
        begun = time.monotonic()
        code, out, err = call(ENTRIES[entry](place, kind, random.Random(number)))
        spent, most = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = {"entry": entry, "kind": kind, "code": code, "out": out[-2000:], "err": err[-4000:], "seconds": spent, "mb": most}
        print(json.dumps({**row, "ran": (place / "ran").exists()}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
