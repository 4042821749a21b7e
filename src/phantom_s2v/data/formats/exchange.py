"""Triplets out of a store and into one: a folder of files, and WebDataset tars.

A triplet is `ID.mp4`, `ID.json` and one `ID.reference-N.EXT` for each image (its mask: `ID.mask-N.png`; that of the clip:
`ID.mask.mp4` or `ID.mask.png`); a tar holds the same names.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from phantom_s2v.data.clips import image_suffix
from phantom_s2v.data.formats.intake import Files, groups_of_folder, groups_of_tars
from phantom_s2v.data.triplets import Triplet, TripletReference, check_triplet
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.io import check_folder, check_outputs, writing
from phantom_s2v.files.untrusted import parse_json, typed
from phantom_s2v.geometry import MAX_IMAGES

SHARD = 1000  # triplets a tar


def to_files(triplet: Triplet) -> Files:
    """The files of a triplet by the rest of their name."""
    described = [{k: v for k, v in asdict(r).items() if k not in ("image", "mask")} for r in triplet.references]
    facts = {k: v for k, v in asdict(replace(triplet, references=())).items() if k not in ("video", "mask")}
    facts |= {"references": described}
    files: Files = {"mp4": triplet.video, "json": json.dumps(facts, ensure_ascii=False, indent=1).encode()}
    if triplet.mask:
        files[f"mask.{image_suffix(triplet.mask) or 'mp4'}"] = triplet.mask
    for number, reference in enumerate(triplet.references, 1):
        files[f"reference-{number}.{_suffix(reference.image)}"] = reference.image
        if reference.mask:
            files[f"mask-{number}.png"] = reference.mask
    return files


def from_files(name: str, files: Files) -> Triplet:
    """The triplet of its files. Raises DataError where one is missing or damaged."""
    try:
        facts = parse_json(files["json"])
        rows, rest = facts.get("references"), {k: v for k, v in facts.items() if k != "references"}
        if not isinstance(rows, list) or len(rows) > MAX_IMAGES:
            raise ValueError(f"references must be a list of at most {MAX_IMAGES}")
        images = {int(k.split("-")[1].split(".")[0]): v for k, v in files.items() if k.startswith("reference-")}
        references = tuple(
            typed(  # in an export of an earlier version, without identities, a score of 0 was not measured
                TripletReference,
                {**row, "box": row.get("box") or None, **({} if "identity" in row else {"score": row.get("score") or None})},
                f"reference {number}",
                image=images[number],
                mask=files.get(f"mask-{number}.png", b""),
            )
            for number, row in enumerate(rows, 1)
        )
        mask = files.get("mask.mp4") or files.get("mask.png") or b""
        triplet = typed(Triplet, rest, "its JSON", video=files["mp4"], references=references, mask=mask)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{name} is not a complete triplet ({reason})") from error
    check_triplet(triplet)
    return triplet


def _suffix(image: bytes) -> str:
    if not (suffix := image_suffix(image)):
        raise DataError("references must be PNG, JPEG or WebP")
    return suffix


def export_folder(triplets: Iterable[Triplet], folder: Path) -> int:
    """Write every triplet as files; returns how many. The video comes last, so a triplet with a video is whole.

    A name follows from the content, so what is there already is kept. Raises DataError where it is something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_folder(folder)
    count = 0
    for triplet in triplets:
        files = to_files(triplet)
        for rest in sorted(files, key=lambda r: r == "mp4"):
            path = folder / f"{triplet.id}.{rest}"
            if not os.path.lexists(path):
                with writing(path) as file:
                    file.write(files[rest])
            elif not path.is_file() or path.read_bytes() != files[rest]:
                raise DataError(f"{path} exists with other contents; choose another folder")
        count += 1
    return count


def export_webdataset(triplets: Iterable[Triplet], total: int, folder: Path, force: bool = False) -> int:
    """Write `total` triplets as tars of a thousand, `000000.tar` and on; returns how many there were.

    Raises InputError, before any work, where tars are there already; with `force` those of an earlier export are replaced.
    """
    from webdataset.writer import TarWriter  # which imports torch

    folder.mkdir(parents=True, exist_ok=True)
    tars = [folder / f"{number:06d}.tar" for number in range(-(-total // SHARD))]
    check_outputs(tars, force=force)
    if others := sorted(set(folder.glob("*.tar")) - set(tars)):
        raise InputError(
            f"{folder} already contains {others[0].name}, which would become part of this export; choose another folder"
        )
    source, count = iter(triplets), 0
    for path in tars:
        # One time, owner and mode, so that the bytes follow from the triplets.
        with writing(path, sealed=True) as file, TarWriter(file, "", "", 0o644, encoder=False, mtime=0) as tar:
            for triplet in islice(source, SHARD):
                tar.write({"__key__": triplet.id, **to_files(triplet)})
                count += 1
    return count


def read_export(folder: Path, left_out: Callable[[str], None]) -> Iterator[Triplet]:
    """Triplets of a folder that was exported, files or tars. What is not whole is named to `left_out` and passed over."""
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist")
    groups = groups_of_tars(folder, left_out) if any(folder.glob("*.tar")) else groups_of_folder(folder)
    any_read = False
    for name, files in groups:
        any_read = True
        try:
            if isinstance(files, str):
                raise DataError(f"{name} was skipped: {files}")
            yield from_files(name, files)
        except DataError as error:
            left_out(str(error))
    if not any_read:
        raise DataError(
            f"{folder} contains no triplets: no videos, no images with captions NAME.txt (images of one subject: --subject), "
            "no metadata.jsonl or metadata.csv, and no export (ID.mp4 with ID.json, or tars); give other lists by name"
        )
