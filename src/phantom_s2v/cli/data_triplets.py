"""phantom data show, export, import: what is in a triplet dataset, out of it and into it."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phantom_s2v.cli.app import MAX_ROW, data, progress, say, tell, whole
from phantom_s2v.cli.options import Consent, Force, License, RequireLicense, TripletDataset
from phantom_s2v.errors import InputError

if TYPE_CHECKING:
    from phantom_s2v.data.formats.items import Reading
    from phantom_s2v.data.triplets import Triplet, TripletStore


def opened(store: "TripletStore") -> "TripletStore":
    """The store, with a word where opening it repaired something."""
    if store.repaired:
        tell(f"{store.path}: {store.repaired} duplicate rows were removed; another process wrote to it without the lock")
    return store


@data.command("show")
def data_show(
    store: TripletDataset,
    start: Annotated[int, whole(0, MAX_ROW, "First row.")] = 0,
    limit: Annotated[int, whole(1, MAX_ROW, "Number of rows.")] = 10,
    version: Annotated[int | None, whole(1, MAX_ROW, "Dataset version; the newest by default.")] = None,
) -> None:
    """List the rows of a triplet dataset. The last line is JSON."""
    from phantom_s2v.data.triplets import TripletStore

    triplets = opened(TripletStore(store, version))
    for row in range(start, min(start + limit, len(triplets))):
        (triplet,) = triplets.take([row])  # one in memory at a time
        say(f"{triplet.id}  {triplet.width}x{triplet.height}, {triplet.frames} frames at {triplet.fps:g}  {triplet.caption}")
        for reference in triplet.references:
            license = reference.rights.license or "no license"
            score = "not measured" if reference.score is None else f"{reference.score:.2f}"
            identity = f", identity {reference.identity}" if reference.identity else ""
            say(f"    {reference.pairing} of {reference.subject}, similarity {score}, {license}{identity}")
    say(json.dumps({"triplets": len(triplets), "versions": [n for n, _ in triplets.versions()]}))


@data.command("export")
def data_export(
    store: TripletDataset,
    out: Annotated[Path, typer.Option(help="Output folder.")],
    webdataset: Annotated[
        bool, typer.Option("--webdataset/--folder", help="WebDataset shards of 1,000 samples, or individual files.")
    ] = False,
    force: Force = False,
) -> None:
    """Export a triplet dataset as WebDataset shards or individual files."""
    from phantom_s2v.data.formats.exchange import export_folder, export_webdataset
    from phantom_s2v.data.triplets import TripletStore

    triplets = opened(TripletStore(store))
    with progress() as bar:
        shown = bar.track(triplets, total=len(triplets), description="triplets")
        count = export_webdataset(shown, len(triplets), out, force) if webdataset else export_folder(shown, out)
    say(json.dumps({"triplets": count, "out": str(out)}))


@data.command("import")
def data_import(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of captioned videos or images, or with metadata.jsonl or metadata.csv; folder of images of one subject "
            "(--subject); list of videos (.jsonl, .csv, .json) or dataset settings (.toml) of another trainer; published "
            "metadata (--published); exported folder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Output dataset, NAME.lance; triplets are merged into an existing one.")],
    captioned: Annotated[
        bool, typer.Option(help="Folder of clips NAME.mp4 or NAME.png with captions NAME.txt, references and masks beside them.")
    ] = False,
    published: Annotated[
        str, typer.Option(help="Published metadata: phantom-data (.parquet) or opens2v (.json), with the clips in --clips.")
    ] = "",
    clips: Annotated[Path | None, typer.Option(help="Folder of the clips of a list or of published metadata.")] = None,
    subject: Annotated[str, typer.Option(help="Name of the one subject that a folder of images shows.")] = "",
    moving: Annotated[
        int, whole(0, 10_000, "Also compose so many clips of 25 frames in which the subject moves (--subject).")
    ] = 0,
    trigger_word: Annotated[str, typer.Option(help="Words before each caption, except of regularization clips.")] = "",
    regularization: Annotated[bool, typer.Option("--regularization", help="The clips keep the model as it was.")] = False,
    num_repeats: Annotated[int, whole(1, 10_000, "Times that an epoch has each clip.")] = 1,
    model: Annotated[
        str,
        typer.Option(
            help="Model that will be trained: its frame rate is that of composed clips, its size that of the contact sheet."
        ),
    ] = ("phantom-mini"),
    source: Annotated[str, typer.Option(help="Origin of the captioned videos.")] = "",
    license: License = "",
    consent: Consent = "",
    require_license: RequireLicense = False,
) -> None:
    """Import triplets into a dataset. Each clip is one line: kept, trimmed or skipped, and why (exit code 3 if any is skipped).

    Writes OUT.sheet.png, a contact sheet of what training will see.
    """
    from phantom_s2v.data.formats.intake import accepted
    from phantom_s2v.data.formats.items import Reading
    from phantom_s2v.data.formats.published import read_opens2v, read_phantom_data
    from phantom_s2v.data.triplets import Rights, TripletStore
    from phantom_s2v.models.registry import load_preset, model_folder

    left = 0

    def left_out(line: str) -> None:
        nonlocal left
        left += 1
        tell(f"skipped: {line}")

    rights, fps = Rights(source, license, consent), float(load_preset(model_folder(model)).fps)
    reading = Reading(
        rights, left_out, tell, tell, repeats=num_repeats, regularization=regularization, trigger=trigger_word.strip(), fps=fps
    )
    readers = {"phantom-data": read_phantom_data, "opens2v": read_opens2v}
    if published and (published not in readers or clips is None or not clips.is_dir()):
        raise InputError(f"published must be {' or '.join(readers)}, with the folder of its clips as --clips (got {published!r})")
    if moving and not subject:
        raise InputError("--moving needs --subject and a folder of its images")
    if published and clips:
        triplets = readers[published](folder, clips, rights, left_out, tell)
    else:
        triplets = _read(folder, clips, subject, moving, captioned, reading)
    first = next(triplets, None)  # what cannot be read at all shows before a store is made
    if first is None and not left:
        raise InputError(f"{folder} contains no triplets")
    store = opened(TripletStore.create(out))
    taken = Counter[bool]()
    new = store.write(_counted(accepted(chain([first] if first else [], triplets), require_license, left_out), taken))
    if taken[False]:
        tell(f"{taken[False]} of {taken.total()} triplets have no reference images; they teach video from text alone")
    _sheet(store, out, model)
    if len(store):
        tell(f"next: phantom encode {shlex.quote(str(out))} --model {shlex.quote(model)} --out LATENTS.lance")
    say(json.dumps({"new": new, "triplets": len(store), "left_out": left}))
    if left:
        raise typer.Exit(3)


def _read(
    folder: Path, clips: Path | None, subject: str, moving: int, captioned: bool, reading: "Reading"
) -> "Iterator[Triplet]":
    """Triplets of what `folder` turns out to be."""
    from phantom_s2v.data.formats.configured import read_toml
    from phantom_s2v.data.formats.exchange import read_export
    from phantom_s2v.data.formats.folders import has_clips, read_captioned, read_subject
    from phantom_s2v.data.formats.listed import LISTS, list_of, read_listed

    if subject:
        return read_subject(folder, subject, reading, moving)
    if folder.is_file() and folder.suffix == ".toml":
        return read_toml(folder, clips, reading)
    if folder.is_file() and folder.suffix in LISTS:
        return read_listed(folder, clips, reading)
    if folder.is_file():
        raise InputError(
            f"{folder} must be a folder, a list ({', '.join(LISTS)}) or settings (.toml); give the folder of the clips"
        )
    if captioned or not folder.is_dir():
        return read_captioned(folder, reading)
    if (found := list_of(folder)) is not None:
        return read_listed(found, clips, reading)
    return read_captioned(folder, reading) if has_clips(folder) else read_export(folder, reading.left_out)


def _counted(triplets: "Iterator[Triplet]", taken: Counter[bool]) -> "Iterator[Triplet]":
    """The triplets, counted by whether they have references."""
    for triplet in triplets:
        taken[bool(triplet.references)] += 1
        yield triplet


def _sheet(store: "TripletStore", out: Path, model: str) -> None:
    """Write the contact sheet of a dataset at the size of a model, and name it."""
    from phantom_s2v.data.buckets import Target, plan
    from phantom_s2v.data.sheet import write_sheet
    from phantom_s2v.models.registry import load_preset, model_folder

    preset, file = load_preset(model_folder(model)), out.with_suffix(".sheet.png")
    target = Target(preset.height * preset.width, preset.num_frames, float(preset.fps), preset.multiple)
    if count := write_sheet(store, plan(store, target), target, file):
        tell(f"{file} shows {count} of {len(store)} triplets as training will see them at the size of {preset.name}")
