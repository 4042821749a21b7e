"""phantom data show, export, import: what is in a triplet dataset, out of it and into it."""

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phantom_s2v.cli.app import MAX_ROW, data, progress, say, tell, whole
from phantom_s2v.cli.options import Consent, Force, License, RequireLicense, TripletDataset
from phantom_s2v.errors import InputError

if TYPE_CHECKING:
    from phantom_s2v.data.triplets import TripletStore


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
            help="Exported folder, folder of captioned videos (--captioned) or of images of one subject (--subject), published "
            "metadata (--published), or a list of videos as other trainers read it (.jsonl, .csv, .json)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Output dataset, NAME.lance; triplets are merged into an existing one.")],
    captioned: Annotated[
        bool, typer.Option(help="Folder of videos NAME.mp4 with captions NAME.txt and reference images NAME.SUBJECT.png.")
    ] = False,
    published: Annotated[
        str, typer.Option(help="Published metadata: phantom-data (.parquet) or opens2v (.json), with the clips in --clips.")
    ] = "",
    clips: Annotated[Path | None, typer.Option(help="Folder of the clips of a list or of published metadata.")] = None,
    subject: Annotated[str, typer.Option(help="Name of the one subject that a folder of images shows.")] = "",
    source: Annotated[str, typer.Option(help="Origin of the captioned videos.")] = "",
    license: License = "",
    consent: Consent = "",
    require_license: RequireLicense = False,
) -> None:
    """Import triplets into a dataset. Damaged ones are reported and skipped (exit code 3)."""
    from phantom_s2v.data.formats.exchange import read_captioned, read_export
    from phantom_s2v.data.formats.intake import accepted
    from phantom_s2v.data.formats.listed import LISTS, read_listed, read_subject
    from phantom_s2v.data.formats.published import read_opens2v, read_phantom_data
    from phantom_s2v.data.triplets import Rights, TripletStore

    left = 0

    def left_out(line: str) -> None:
        nonlocal left
        left += 1
        tell(f"skipped: {line}")

    rights = Rights(source, license, consent)
    readers = {"phantom-data": read_phantom_data, "opens2v": read_opens2v}
    if published and (published not in readers or clips is None or not clips.is_dir()):
        raise InputError(f"published must be {' or '.join(readers)}, with the folder of its clips as --clips (got {published!r})")
    if published and clips:
        triplets = readers[published](folder, clips, rights, left_out, tell)
    elif subject:
        triplets = read_subject(folder, subject, rights, left_out, tell)
    elif folder.is_file() and folder.suffix in LISTS:
        triplets = read_listed(folder, clips, rights, left_out, tell)
    else:
        triplets = read_captioned(folder, rights, left_out, tell) if captioned else read_export(folder, left_out)
    first = next(triplets, None)  # what cannot be read at all shows before a store is made
    if first is None and not left:
        raise InputError(f"{folder} contains no triplets")
    store = opened(TripletStore.create(out))
    new = store.write(accepted(chain([first] if first else [], triplets), require_license, left_out))
    say(json.dumps({"new": new, "triplets": len(store), "left_out": left}))
    if left:
        raise typer.Exit(3)
