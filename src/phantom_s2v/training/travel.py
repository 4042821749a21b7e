"""A training run that travels: sprites, networks and wheels in archives for a small transfer, weights back in parts.

The machine with the GPU needs neither a network nor this package's other dependencies (docs/training.md). runs/pack_gpu.sh and
runs/gpu.sh call `python -m phantom_s2v.training.travel pack | unpack | join`; archives are extracted by Python's zipfile.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from safetensors.torch import load, load_file, save

from phantom_s2v.data.synthetic.emoji import Sprites, load_store, write_store
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.hashes import folder_hash
from phantom_s2v.files.io import read_json, write_json, writing
from phantom_s2v.files.reuse import code_version, note, why_not
from phantom_s2v.models.tensors import FILE

PART = 15 << 20  # bytes of a part: the transfer brings files of up to 16 MiB back
ARCHIVE = 62 << 20  # bytes of an archive: 64 MiB travel at once, the tracked files among them
QUALITY, ALPHA_QUALITY = 75, 80  # of the sprites' WebP
TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def pack_sprites(store: Sprites, archive: zipfile.ZipFile) -> None:
    """Every subject's still and its animation's frames as WebP images side by side in one file, in the order of the store."""
    for subject in store.subjects:
        frames = store.pixels[subject.start : subject.start + subject.frames]
        strip = np.ascontiguousarray(np.concatenate(list(frames), 1))
        data = io.BytesIO()
        Image.frombuffer("RGBa", strip.shape[1::-1], strip.tobytes()).convert("RGBA").save(
            data, "WEBP", quality=QUALITY, alpha_quality=ALPHA_QUALITY, method=4
        )
        archive.writestr(f"sprites/{subject.key}.webp", data.getvalue())
    archive.writestr("sprites/keys.json", json.dumps([subject.key for subject in store.subjects]))


def unpack_sprites(folder: Path, root: Path) -> None:
    """Write the store of `pack_sprites`, unpacked in `folder`, under `root`, decoding on all cores."""
    keys = json.loads((folder / "keys.json").read_text())
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the interpreter's lock
        decoded = pool.map(_decode, [folder / f"{key}.webp" for key in keys])
        write_store(root, ((key, f[0], f[1:] if len(f) > 1 else None) for key, f in zip(keys, decoded, strict=True)))


def _decode(path: Path) -> np.ndarray:
    """Frames of a strip as premultiplied RGBA, uint8 [k, S, S, 4]."""
    with Image.open(path, formats=("WEBP",)) as image:
        strip = np.asarray(image.convert("RGBA").convert("RGBa"))
    side = strip.shape[0]
    return np.stack([strip[:, left : left + side] for left in range(0, strip.shape[1], side)])


def pack_network(folder: Path, name: str, archive: zipfile.ZipFile, without: tuple[str, ...] = ()) -> None:
    """A part of a model in float16; tensors whose names begin with one of `without` become zeros, which take no room."""
    state = {
        key: torch.zeros_like(value.half()) if key.startswith(without) and without else value.half()
        for key, value in load_file(folder / FILE).items()
    }
    archive.writestr(f"{name}/{FILE}", save(state))
    archive.write(folder / "config.json", f"{name}/config.json")


def pack_text_encoder(folder: Path, used: Iterable[int], archive: zipfile.ZipFile) -> None:
    """The text encoder in float16, with the embeddings of tokens that are not `used` as zeros, which take no room."""
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in load_file(folder / "model.safetensors").items()
    }
    name = next(key for key in state if key.endswith("word_embeddings.weight"))
    kept = torch.zeros(len(state[name]), dtype=torch.bool)
    kept[list(used)] = True
    state[name] = state[name] * kept[:, None]
    archive.writestr("text_encoder/model.safetensors", save(state, metadata={"format": "pt"}))
    for text in TEXTS:
        if (folder / text).is_file():
            archive.write(folder / text, f"text_encoder/{text}")


def caption_tokens(store: Sprites) -> set[int]:
    """Numbers of all tokens that captions of the store's subjects can hold."""
    from phantom_s2v.data.synthetic.appearance import COLORS, PATTERNS, TEXTURES
    from phantom_s2v.data.synthetic.compose import MOTIONS
    from phantom_s2v.models.phantom.encoders import TextEncoder

    words = [*COLORS, *PATTERNS, *TEXTURES, *MOTIONS.values(), *(subject.name for subject in store.subjects)]
    words += [
        "",
        "the subject large small first second third fourth at top bottom left right on a background fading from to with , .",
    ]
    tokens, mask = TextEncoder().tokens(words)
    return set(tokens[mask].tolist())


def part(folder: Path, out: Path) -> list[Path]:
    """The weights in `folder` in float16, as files of at most PART bytes in `out`, written anew; `join` puts them together."""
    data = save({key: value.half() for key, value in load_file(folder / FILE).items()})
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for number, start in enumerate(range(0, len(data), PART)):
        files.append(out / f"{folder.name}.{number}.part")
        _write(files[-1], data[start : start + PART])
    _write(out / f"{folder.name}.config.json", (folder / "config.json").read_bytes())
    return files


def write_parts(run: Path, out: Path) -> None:
    """The raw and the averaged weights of a training run in parts, and its log."""
    for name in ("raw", "transformer"):
        if (run / name / FILE).is_file():
            part(run / name, out)
    _write(out / "log.jsonl", (run / "log.jsonl").read_bytes())


def _write(path: Path, data: bytes) -> None:
    with writing(path) as file:
        file.write(data)


def join(parts: Path, name: str, out: Path) -> None:
    """A part of a model from the files of `part`. Raises DataError where they are not whole."""
    files = sorted(parts.glob(f"{name}.*.part"), key=lambda file: int(file.name.split(".")[-2]))
    data = b"".join(file.read_bytes() for file in files)
    out.mkdir(parents=True, exist_ok=True)
    try:
        load(data)
    except Exception as error:
        raise DataError(
            f"the weights of {name} in {parts} are incomplete ({len(files)} parts, {len(data)} bytes): {error}"
        ) from error
    _write(out / FILE, data)
    _write(out / "config.json", (parts / f"{name}.config.json").read_bytes())


@app.command("pack")
def pack_command(
    out: Annotated[Path, typer.Argument(help="Folder of the two archives.")],
    root: Annotated[Path, typer.Option(help="Path to the emoji dataset.")],
    model: Annotated[Path, typer.Option(help="Model whose autoencoder and image encoder are used.")],
    init_from: Annotated[Path | None, typer.Option(help="Initial weights of the transformer; without it, random ones.")] = None,
    wheels: Annotated[Path | None, typer.Option(help="Folder of wheels that the other machine lacks.")] = None,
) -> None:
    """Pack frozen networks and wheels into start.zip, sprites into data.zip, initial weights into weights.zip."""
    from phantom_s2v.models.phantom.encoders import text_encoder_folder

    store = load_store(root)
    with _archive(out / "data.zip") as archive:
        pack_sprites(store, archive)
    with _archive(out / "start.zip") as archive:
        pack_network(model / "vae", "vae", archive, without=("decoder.", "post_quant_conv."))
        for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
            archive.write(wheel, f"wheels/{wheel.name}")
        pack_text_encoder(text_encoder_folder(), caption_tokens(store), archive)
        pack_network(model / "image_encoder", "image_encoder", archive)
    (out / "weights.zip").unlink(missing_ok=True)
    if init_from is not None:
        with _archive(out / "weights.zip") as archive:
            pack_network(init_from, "transformer", archive)
    for file in sorted(out.glob("*.zip")):
        print(f"{file} {file.stat().st_size / (1 << 20):.1f} MiB")
        if file.stat().st_size > ARCHIVE:
            raise InputError(
                f"an archive must have at most {ARCHIVE >> 20} MiB (got {file.stat().st_size >> 20} MiB for {file.name})"
            )


def _archive(path: Path) -> zipfile.ZipFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    return zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6)


@app.command("unpack")
def unpack_command(kit: Annotated[Path, typer.Argument(help="Folder into which the archives were extracted.")]) -> None:
    """Make the dataset KIT/emoji of the sprites in KIT/sprites, where they are."""
    if (kit / "sprites").is_dir():
        unpack_store(kit / "sprites", kit / "emoji")


def unpack_store(sprites: Path, root: Path) -> None:
    """`unpack_sprites`, unless the store under `root` was made of these sprites already, by this code."""
    origin = {"sprites": folder_hash(sprites, (".webp", ".json")), "code": code_version("training.travel")}
    made, noted = root / "subjects.json", root / "origin.json"
    if not (made.exists() and noted.exists()) or why_not(made, read_json(noted), origin):
        unpack_sprites(sprites, root)
        write_json(noted, note(made, origin), sealed=True)


@app.command("join")
def join_command(
    parts: Annotated[Path, typer.Argument(help="Folder of the parts.")],
    out: Annotated[Path, typer.Argument(help="Folder that takes raw/ and transformer/.")],
) -> None:
    """Put the parts together again."""
    for name in sorted({file.name.split(".")[0] for file in parts.glob("*.part")}):
        join(parts, name, out / name)
        print(out / name)


if __name__ == "__main__":
    app()
