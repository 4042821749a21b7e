"""phantom data build, calibrate, source-videos, check, emoji: triplet datasets out of videos."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phantom_s2v.cli.app import MAX_SEED, MAX_VIDEOS, by_stage, data, progress, real, say, tell, whole
from phantom_s2v.cli.options import Consent, EmojiRoot, Force, License, Ray, RequireLicense, ShotDetector, TrainingEmoji, Workers
from phantom_s2v.errors import InputError

if TYPE_CHECKING:
    from phantom_s2v.data.pipeline.config import Config
    from phantom_s2v.data.pipeline.engine import MakeModels
    from phantom_s2v.data.triplets import Rights

FILES = {"arcface": "an ONNX", "aesthetic": "a safetensors"}  # networks that are one file
OWN = ("object_detector", "inpainter")  # networks that may be MODULE:FUNCTION
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
    shot_detector: ShotDetector = None,
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
            "OWNER/MODEL). Set the threshold of another one with `phantom data calibrate`. Default: efficientnet-lite0, or the "
            "one of --config."
        ),
    ] = "",
    arcface: Annotated[str, typer.Option(help="ArcFace network for faces, .onnx. Default: dlib's features.")] = "",
    aesthetic: Annotated[
        str, typer.Option(help="Aesthetic predictor head for CLIP ViT-L/14, .safetensors: scores reference images.")
    ] = "",
    clip: Annotated[str, typer.Option(help="CLIP ViT-L/14 for --aesthetic: folder, or OWNER/MODEL on a hub.")] = "",
    look_for_people: Annotated[
        bool, typer.Option("--people", help="Also detect people, faces and burnt-in text (needs `phantom models fetch`).")
    ] = False,
    background: Annotated[
        bool, typer.Option("--background", help="Add a reference of the scene without its subjects, named background.")
    ] = False,
    inpainter: Annotated[
        str,
        typer.Option(
            help="What fills subjects in backgrounds: diffusers inpainting pipeline, or MODULE:FUNCTION. Default: OpenCV."
        ),
    ] = "",
    workers: Workers = 1,
    ray: Ray = "",
    source: Annotated[str, typer.Option(help="Origin of the videos.")] = "",
    license: License = "",
    consent: Consent = "",
    require_license: RequireLicense = False,
) -> None:
    """Build a triplet dataset from videos: shots, quality filters, captions, subjects, cross-pairs. Resumes where it stopped.

    Unreadable files are reported and skipped (exit code 3).
    """
    from phantom_s2v.data.triplets import Rights

    over: dict[str, Any] = {"shot_detector": shot_detector} if shot_detector else {}
    over |= {"people": True} if look_for_people else {}
    over |= {"background": True} if background else {}
    named = {
        "captioner": captioner,
        "object_detector": object_detector,
        "segmenter": segmenter,
        "embedder": embedder,
        "arcface": arcface,
        "aesthetic": aesthetic,
        "clip": clip,
        "inpainter": inpainter,
    }
    check_out(videos, out)
    check_phrases(videos, captioner, object_detector, segmenter)
    settings = read_config(config, over)
    if inpainter and not settings.background:
        raise InputError("--inpainter needs --background: it fills the subjects in backgrounds")
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
    from phantom_s2v.data.clips import VIDEOS
    from phantom_s2v.data.pipeline import engine, probe, report
    from phantom_s2v.data.pipeline.index import SubjectIndex

    paths = list(probe.find(videos))
    if not paths:
        raise InputError(f"{videos} contains no videos (supported: {', '.join(VIDEOS)})")
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
    from phantom_s2v.data.detectors.own import load_detector, load_inpainter, own_hash
    from phantom_s2v.data.pipeline.networks import packaged_models
    from phantom_s2v.files.hashes import MADE_OF, content_hash, folder_hash
    from phantom_s2v.vision import fetched
    from phantom_s2v.vision.embed import CLIP
    from phantom_s2v.vision.factory import FEATURES, features_hash, packaged_hash

    if settings.people and not fetched.fetched():
        raise InputError(
            "--people needs models that are not installed; run pip install 'phantom-s2v[people]' and phantom models fetch"
        )
    own = _own_functions(named)
    if named["embedder"] in FEATURES or not named["embedder"]:
        settings, named = replace(settings, embedder=named["embedder"] or settings.embedder), {**named, "embedder": ""}
    if settings.embedder not in FEATURES:
        others = "give others by --embedder"
        raise InputError(f"embedder in --config must be {' or '.join(FEATURES)}; {others} (got {settings.embedder!r})")
    if named.get("clip") and not named.get("aesthetic"):
        raise InputError("--clip needs --aesthetic: it embeds the images that the aesthetic head scores")
    if named.get("aesthetic"):
        named = {**named, "clip": named.get("clip") or CLIP}
    files = {name: Path(named[name]) for name in FILES if named.get(name)}
    folders = _model_folders(named, apart=(*own, *files))
    packaged = packaged_hash() if settings.embedder == "phantom-mini" else features_hash(settings.embedder)
    hashes = {"packaged": packaged} | ({"fetched": fetched.fetched_hash()} if settings.people else {})
    hashes |= {name: folder_hash(place, MADE_OF) for name, place in folders.items() if place}
    for name, file in files.items():
        if not file.is_file():
            raise InputError(f"{name} must be {FILES[name]} file (got {file})")
        hashes[name] = content_hash(file)
    known = [f"{name}={value[:16]}" for name, value in hashes.items()]
    for name, each in own.items():
        (load_detector if name == "object_detector" else load_inpainter)(each)  # what cannot be imported is said before any work
        known.append(f"{name}={each}@{own_hash(each)[:16]}")
    asked: dict[str, Any] = {**folders, **files, **own}
    settings = replace(settings, models=",".join(known))
    return settings, partial(packaged_models, settings, asked if any(asked.values()) else None)


def _own_functions(named: dict[str, str]) -> dict[str, str]:
    """MODULE:FUNCTION of the networks that are functions of the user's own."""
    from phantom_s2v.data.detectors.own import is_own

    own = {name: each for name in OWN if is_own(each := named.get(name, ""))}
    if "object_detector" in own and named.get("segmenter"):
        detector = own["object_detector"]
        raise InputError(f"--segmenter cannot be combined with --object-detector {detector}, which finds the masks itself")
    return own


def _model_folders(named: dict[str, str], apart: tuple[str, ...]) -> dict[str, Path | None]:
    """The folder of each model that is named, except for those of names `apart`, which are no model folders."""
    from phantom_s2v.models.registry import source_path

    folders = {name: source_path(path) if path else None for name, path in named.items() if name not in apart}
    for name, place in folders.items():
        layout = "diffusers" if name == "inpainter" else "transformers"
        if place and not place.is_dir():
            raise InputError(f"{name} must be a model folder in the {layout} layout or OWNER/MODEL on a hub (got {place})")
    return folders


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
        if "models" in table:
            raise ValueError(f"{file} must not set models, which names the networks that the options give")
        config = typed(Config, table | over, str(file) if file else "the config").checked()
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
    from phantom_s2v.files.untrusted import printable

    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of images NAME-NN.jpg")
    check_outputs([out], force=force, suffix=".toml")
    paths, names = labelled(folder)
    settings, make = asked_models(read_config(None, {}), {"embedder": embedder})
    found = separation(embeddings(paths, make().embed), names, precision)
    origin = f"precision {found.precision:.3f}, recall {found.recall:.3f}, {found.same} pairs of one subject, {settings.models}"
    write_text(out, f"# {printable(embedder)}: {origin}\nlower = {found.lower:.4f}\n", sealed=True)
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
    training: TrainingEmoji = False,
    shot_detector: ShotDetector = "scenedetect",
    workers: Workers = 1,
    ray: Ray = "",
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
def data_emoji(root: EmojiRoot = None) -> None:
    """Download the Fluent Emoji packages with npm (750 MB) and build the training subjects."""
    from phantom_s2v.data.synthetic.emoji import default_root, fetch, load_store
    from phantom_s2v.data.synthetic.heldout import held_out_families

    target = root or default_root()
    fetch(target, held_out_families(), tell)
    say(json.dumps({"subjects": len(load_store(target).subjects), "root": str(target)}))
