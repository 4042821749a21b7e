"""phantom evaluate."""

import json
import socket
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phantom_s2v.cli.app import MAX_ROW, MAX_VIDEOS, Force, by_stage, evaluate, progress, say, tell, whole
from phantom_s2v.errors import InputError
from phantom_s2v.geometry import SPACE_STRIDE
from phantom_s2v.pipeline.request import MAX_SIDE

if TYPE_CHECKING:
    import numpy as np

    from phantom_s2v.evaluation.instruments import Instruments
    from phantom_s2v.evaluation.run import SuiteResult
    from phantom_s2v.evaluation.suites.own import Case


Features = Annotated[str, typer.Option(help="Feature network for subject similarity: efficientnet-lite0 or phantom-mini.")]
Backend = Annotated[str, typer.Option(help="Networks: packaged, or hub (adds CLIP and DINO for text score, CLIP-I and DINO-I).")]
Clip = Annotated[str, typer.Option(help="CLIP or SigLIP model: folder, or OWNER/MODEL on a hub (hub backend).")]
Dino = Annotated[str, typer.Option(help="DINO model: folder, or OWNER/MODEL on a hub (hub backend).")]
Aesthetic = Annotated[str, typer.Option(help="Aesthetic predictor head for CLIP ViT-L/14, .safetensors (hub backend).")]
Arcface = Annotated[str, typer.Option(help="ArcFace model (.onnx) instead of the dlib face embedder.")]
Segmenter = Annotated[str, typer.Option(help="SAM2 model: CLIP-I and DINO-I of the segmented subject on photographs.")]
ObjectDetector = Annotated[
    str, typer.Option(help="GroundingDINO or OWLv2 model that finds the subject by its name (for --segmenter, opens2v).")
]
Curricular = Annotated[str, typer.Option(help="opens2v only: CurricularFace model (.onnx) for FaceSim-Cur.")]
Vlm = Annotated[str, typer.Option(help="opens2v only: vision-language model for our NaturalScore.")]
Reconstruct = Annotated[str, typer.Option(help="What to measure VAE reconstruction error on: none, references or videos (slow).")]
KpiFile = Annotated[Path | None, typer.Option(help="TOML file with KPI thresholds; exit code 1 if one is missed.")]
Crop = Annotated[str, typer.Option(help="Region of the frames to evaluate: LEFT,TOP,RIGHT,BOTTOM as fractions 0 to 1.")]
References = Annotated[list[str] | None, typer.Option("--reference", help="[NAME=]PATH of a reference image, one per subject.")]
INSTRUMENTS = (
    "features",
    "backend",
    "clip",
    "dino",
    "aesthetic",
    "arcface",
    "segmenter",
    "object_detector",
    "reconstruct",
    "model",
)


def chosen(options: dict[str, Any]) -> "Instruments":
    """The instruments that a command's options name."""
    from phantom_s2v.evaluation.networks import Wanted, instruments

    opens2v = options.get("suite") == "opens2v"
    if options.get("object_detector") and not (options.get("segmenter") or opens2v):
        raise InputError("--object-detector needs --segmenter")
    if not opens2v and (options.get("curricularface") or options.get("vlm")):
        raise InputError("--curricularface and --vlm are for the opens2v suite only")
    return instruments(Wanted(**{name: options[name] for name in INSTRUMENTS if name in options}))


@evaluate.command("run")
def evaluate_run(
    suite: Annotated[str, typer.Argument(help="Suite: emoji, robustness, opens2v, or a folder with cases.jsonl.")],
    path: Annotated[
        Path | None, typer.Argument(help="opens2v only: its JSON file of cases, in the folder of its images.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model name or model folder.")] = "phantom-mini",
    videos: Annotated[
        Path | None, typer.Option(help="Folder of existing videos, ID.mp4, to score instead of generating.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. An existing run is resumed.")] = None,
    limit: Annotated[int | None, whole(1, MAX_ROW, "Maximum number of subjects or cases.")] = None,
    size: Annotated[
        int | None,
        whole(SPACE_STRIDE, MAX_SIDE, "emoji only: side of the videos in pixels; default: the model's."),
    ] = None,
    features: Features = "efficientnet-lite0",
    backend: Backend = "packaged",
    clip: Clip = "",
    dino: Dino = "",
    aesthetic: Aesthetic = "",
    arcface: Arcface = "",
    segmenter: Segmenter = "",
    object_detector: ObjectDetector = "",
    curricularface: Curricular = "",
    vlm: Vlm = "",
    reconstruct: Reconstruct = "references",
    kpi: KpiFile = None,
) -> None:
    """Generate and score a benchmark suite. The last line is JSON.

    Exit codes: 1 if a KPI is missed, 2 for bad input, 3 if some videos could not be read.
    """
    options = dict(locals())
    if size is not None and suite != "emoji":
        raise InputError(f"--size is for the emoji suite only (got {suite})")
    if (suite == "opens2v") != (path is not None):
        raise InputError("the path of a JSON file is required for opens2v, and for no other suite")
    if suite not in ("emoji", "robustness", "opens2v") and not Path(suite).is_dir():
        raise InputError(f"suite must be emoji, robustness, opens2v or a folder with cases.jsonl (got {suite!r})")
    target = out or Path("outputs") / Path(suite).name
    if suite == "emoji":
        run_emoji_suite(model, target, limit, size)
    else:
        run_cases(options, target)


def run_cases(options: dict[str, Any], target: Path) -> None:
    """Any other suite, with the score."""
    from phantom_s2v.evaluation.kpi import check_networks, read_kpis
    from phantom_s2v.evaluation.suites import own

    suite, path, model, videos = (options[name] for name in ("suite", "path", "model", "videos"))
    kpis, tools = read_kpis(options["kpi"]) if options["kpi"] else [], chosen(options)
    check_networks(kpis, tools)
    target.mkdir(parents=True, exist_ok=True)
    cases, clips = cases_of(suite, path, target, tools, options["limit"])
    results = target / f"{Path(model).name if not videos else videos.name}_output_json"
    if suite == "opens2v":
        own.check_opens2v(results)
    made = videos or target / "videos"
    make = None if videos else maker(model, cases, clips, made)
    with progress() as bar:
        result = own.run_suite(cases, made, make, tools, kpis, target, by_stage(bar))
    if suite == "opens2v":
        written = own.write_opens2v(cases, made, tools, results)
        result.lines += [f"wrote {file}" for file in written]
    say(*result.lines, *own.kind_lines(result.summary["by_kind"]))
    finish(result, {"suite": suite, "model": None if videos else model})


def run_emoji_suite(model: str, out: Path, limit: int | None, size: int | None) -> None:
    """The emoji suite, with its subject classifier."""
    from phantom_s2v.evaluation.reports.table import table
    from phantom_s2v.evaluation.suites.emoji import run_emoji
    from phantom_s2v.geometry import VideoSize
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.pipeline.loading import load_models

    pipe = load_models(model_folder(model))
    side = VideoSize(pipe.preset.num_frames, size, size).height if size else None
    with progress() as bar:
        task = bar.add_task("videos", total=None)
        figures = run_emoji(pipe, out, limit, lambda done, total: bar.update(task, completed=done, total=total), side)
    say(*table(figures).splitlines())
    say(json.dumps(figures | {"model": pipe.preset.name, "weights": pipe.weights}))


def cases_of(
    suite: str, path: Path | None, out: Path, tools: "Instruments", limit: int | None
) -> tuple[list["Case"], dict[str, "np.ndarray"]]:
    """The cases of a suite, and the frames of those that need no model, by id."""
    from phantom_s2v.evaluation.robustness import robustness_cases
    from phantom_s2v.evaluation.suites.own import read_opens2v, read_own

    if suite == "robustness":
        return robustness_cases(out / "references", tools.embed, limit)
    if not path:
        return read_own(Path(suite))[:limit], {}
    cases, missing = read_opens2v(path)
    for line in missing:
        tell(line)
    return cases[:limit], {}


def maker(model: str, cases: list["Case"], clips: dict[str, "np.ndarray"], videos: Path) -> Callable[["Case", Path], None]:
    """What sees to the video of a case: one that is there is kept where everything that made it is the same, and made again
    where not. Every request is checked first, and the model loads when it has to make the first.
    """
    from phantom_s2v.evaluation.robustness import clip_origin
    from phantom_s2v.media import images
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import load_preset, model_folder
    from phantom_s2v.pipeline.batch import build_request, check_job, make, note_video, remade_because
    from phantom_s2v.pipeline.generate import load_for
    from phantom_s2v.pipeline.loading import check_models, model_hash
    from phantom_s2v.pipeline.metadata import origin_of

    folder = model_folder(model)
    check_models(folder)
    preset = load_preset(folder)
    videos.mkdir(parents=True, exist_ok=True)
    requests = {case.id: build_request(case.request, preset) for case in cases if case.id not in clips}
    for name, request in requests.items():
        check_job(request, videos / f"{name}.mp4")
    weights = model_hash(folder)
    origins = {name: origin_of(request, weights, asdict(Placement())) for name, request in requests.items()}
    origins |= {name: clip_origin(clip, preset.fps) for name, clip in clips.items()}
    left = {name: why for name, origin in origins.items() if (why := remade_because(videos / f"{name}.mp4", origin)) != ""}
    if again := [f"{name}: {why}" for name, why in left.items() if why]:
        tell(f"{len(again)} of {len(cases)} videos are regenerated; {again[0]}")

    @cache
    def loaded() -> Any:
        return load_for([r for name, r in requests.items() if name in left], folder)

    def run(case: "Case", target: Path) -> None:
        if case.id not in left:
            return
        if case.id in clips:
            images.write_video(target, clips[case.id], preset.fps)
            note_video(target, origins[case.id], {})
        else:
            make(requests[case.id], loaded(), target, False, lambda _: None, origins[case.id])

    return run


def finish(result: "SuiteResult", fields: dict[str, Any]) -> None:
    """The last line, and the exit code."""
    say(json.dumps({**fields, **result.summary}, ensure_ascii=False))
    if result.missed:
        raise typer.Exit(1)
    if result.unreadable:
        raise typer.Exit(3)


@evaluate.command("autoencoder")
def evaluate_autoencoder(
    model: Annotated[str, typer.Option(help="Model name or model folder.")] = "phantom-mini",
    size: Annotated[int | None, whole(SPACE_STRIDE, MAX_SIDE, "Side of the clips in pixels; default: the model's.")] = None,
) -> None:
    """VAE reconstruction PSNR on held-out clips with textured backgrounds. The last line is JSON."""
    from phantom_s2v.evaluation.metrics.measures import bootstrap
    from phantom_s2v.evaluation.suites.emoji import autoencoder_psnr, held_out
    from phantom_s2v.geometry import VideoSize
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.pipeline.loading import load_models

    pipe = load_models(model_folder(model))
    values = autoencoder_psnr(pipe, held_out(), VideoSize(1, size, size).height if size else pipe.preset.height)
    say(json.dumps({name: [round(v, 3) for v in bootstrap(each)] for name, each in values.items()}))


@evaluate.command("score")
def evaluate_score(
    videos: Annotated[Path, typer.Argument(help="Video file or folder.")],
    reference: References = None,
    prompt: Annotated[str, typer.Option(help="Text prompt of the videos; positions it gives to subjects are checked.")] = "",
    features: Features = "efficientnet-lite0",
    backend: Backend = "packaged",
    clip: Clip = "",
    dino: Dino = "",
    aesthetic: Aesthetic = "",
    arcface: Arcface = "",
    segmenter: Segmenter = "",
    object_detector: ObjectDetector = "",
    reconstruct: Reconstruct = "references",
    model: Annotated[str, typer.Option(help="Model whose autoencoder --reconstruct uses.")] = "phantom-mini",
    crop: Crop = "0,0,1,1",
    kpi: KpiFile = None,
    out: Annotated[Path | None, typer.Option(help="Output report, .html. Also writes the scores as .jsonl.")] = None,
    force: Force = False,
) -> None:
    """Score videos: subject presence, similarity, duplicates, position, copy-paste, and video quality.

    The last line is JSON. Exit codes: 1 if a KPI is missed, 2 for bad input, 3 if some videos could not be read.
    """
    options = dict(locals())
    from phantom_s2v.evaluation.kpi import check_networks, read_kpis
    from phantom_s2v.evaluation.run import Asked, find_videos, name_references, parse_crop, score_all
    from phantom_s2v.files.io import check_outputs
    from phantom_s2v.media.pages import later_pages

    if out:
        check_outputs([out, *later_pages(out)], force=force, suffix=".html")
        check_outputs([out.with_suffix(".jsonl")], force=force)
    kpis, box, paths = read_kpis(kpi) if kpi else [], parse_crop(crop), find_videos(videos)
    named, tools = name_references(reference or []), chosen(options)
    if not named:
        tell("no --reference given: only video quality (motion, flicker) is measured")
    check_networks(kpis, tools)
    asked = Asked(named, prompt, tools, box, kpis)
    with progress() as bar:
        result = score_all([(path, asked) for path in paths], out, partial(by_stage(bar), "videos"))
    say(*result.lines)
    finish(result, {})


@evaluate.command("compare")
def evaluate_compare(
    systems: Annotated[
        list[Path], typer.Argument(help="Results of two or more systems: folders of evaluate run, or .jsonl of evaluate score.")
    ],
    out: Annotated[Path | None, typer.Option(help="Output report, .html.")] = None,
    force: Force = False,
) -> None:
    """Compare systems on the same cases: paired bootstrap intervals, wins and losses. The last line is JSON."""
    from phantom_s2v.evaluation import compare
    from phantom_s2v.evaluation.reports.comparison import write_comparison
    from phantom_s2v.evaluation.suites.own import read_rows
    from phantom_s2v.files.io import check_outputs

    names = [path.resolve().name if path.is_dir() else path.stem for path in systems]
    if len(set(names)) < len(names):
        names = [f"{name} {number}" for number, name in enumerate(names, 1)]
    if out:
        check_outputs([out], force=force, suffix=".html")
    rows = dict(zip(names, map(read_rows, systems), strict=True))
    comparisons, notes = compare.compare(rows)
    if out:
        write_comparison(out, comparisons, notes, compare.largest_changes(dict(zip(names, systems, strict=True)), rows))
    say(*compare.lines(comparisons), *notes)
    say(json.dumps({"comparisons": compare.as_rows(comparisons), "notes": notes}, ensure_ascii=False))


@evaluate.command("rate")
def evaluate_rate(
    systems: Annotated[
        list[Path], typer.Argument(help="Video folders of two or more systems, with the same file names in each.")
    ],
    suite: Annotated[
        Path | None, typer.Option(help="Folder with cases.jsonl; its prompts and reference images are shown.")
    ] = None,
    votes: Annotated[Path, typer.Option(help="SQLite file for the votes.")] = Path("votes.sqlite"),
    rater: Annotated[list[str] | None, typer.Option(help="Name of a rater, who gets a personal link. Repeat for more.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind to; any other than localhost needs --allow-remote.")] = "127.0.0.1",
    port: Annotated[int, whole(1, 65535, "Port.")] = 8765,
    allow_remote: Annotated[
        bool, typer.Option(help="Allow access from other machines: unencrypted, for anyone with a rater's link.")
    ] = False,
) -> None:
    """Serve a web page for blind pairwise rating of videos.

    Each rater gets a secret link, which stays valid as long as the votes file is kept.
    """
    try:
        import uvicorn

        from phantom_s2v.evaluation.rating import application, as_shown, find_pairs, is_loopback, links
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run pip install 'phantom-s2v[web]'") from error
    from phantom_s2v.evaluation.suites.own import read_own
    from phantom_s2v.files.io import check_folder

    if not is_loopback(host) and not allow_remote:
        raise InputError(
            f"--host {host} is reachable from other machines and needs --allow-remote: traffic is not encrypted, and anyone who "
            "has or intercepts a rater's link can see the videos and vote as that rater"
        )

    check_folder(votes.parent)
    descriptions = {
        case.id: (case.prompt, tuple(path for _, path in case.references)) for case in (read_own(suite) if suite else [])
    }
    with TemporaryDirectory() as scratch:
        pairs = as_shown(find_pairs(systems, descriptions), Path(scratch), tell)
        app = application(pairs, votes, host)
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        say(f"{len(pairs)} comparisons (stop with Ctrl-C; votes are saved in {votes}). Secret link of each rater:")
        for name, secret in links(votes, rater or ["rater 1"]).items():
            say(f"{name}: http://{shown}:{port}/rate/{secret}")
        uvicorn.run(app, host=host, port=port, log_level="warning", limit_concurrency=256, server_header=False)


@evaluate.command("votes")
def evaluate_votes(
    votes: Annotated[Path, typer.Argument(help="SQLite votes file of `phantom evaluate rate`.")],
    out: Annotated[Path | None, typer.Option(help="Output report, .html.")] = None,
    force: Force = False,
) -> None:
    """Count the votes: wins per system and question, with intervals and inter-rater agreement."""
    try:
        from phantom_s2v.evaluation.rating import QUESTIONS, results
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run pip install 'phantom-s2v[web]'") from error

    from phantom_s2v.evaluation.reports.comparison import write_votes
    from phantom_s2v.files.io import check_outputs

    if out:
        check_outputs([out], [votes], force=force, suffix=".html")
    rows = results(votes)
    if out:
        write_votes(out, rows, QUESTIONS)
    for row in rows:
        share = "" if row["second_share"] is None else f"; {row['second']} preferred {row['second_share']:.2f} {row['interval']}"
        agreed = "n/a (no case has two raters, or all votes are equal)" if row["agreement"] is None else row["agreement"]
        say(
            f"{row['question']}: {row['first']} {row['first_wins']}, {row['second']} {row['second_wins']}, equal {row['equal']} "
            f"({row['cases']} cases, {row['raters']} raters){share}; agreement {agreed}"
        )
    say(json.dumps({"questions": rows}, ensure_ascii=False))


@evaluate.command("calibrate")
def evaluate_calibrate(
    good: Annotated[Path, typer.Argument(help="Folder of acceptable videos.")],
    bad: Annotated[Path, typer.Argument(help="Folder of unacceptable videos.")],
    reference: References = None,
    prompt: Annotated[str, typer.Option(help="Text prompt of the videos.")] = "",
    features: Features = "efficientnet-lite0",
    backend: Backend = "packaged",
    clip: Clip = "",
    dino: Dino = "",
    aesthetic: Aesthetic = "",
    arcface: Arcface = "",
    segmenter: Segmenter = "",
    object_detector: ObjectDetector = "",
    crop: Crop = "0,0,1,1",
    out: Annotated[Path, typer.Option(help="Output KPI file, .toml.")] = Path("kpi.toml"),
    force: Force = False,
) -> None:
    """Calibrate KPI thresholds on your own footage, with their error rates."""
    options = dict(locals())
    from phantom_s2v.evaluation import calibration
    from phantom_s2v.evaluation.run import Asked, find_videos, name_references, parse_crop, score_one
    from phantom_s2v.files.io import check_outputs, write_text

    check_outputs([out], force=force, suffix=".toml")
    box, paths = parse_crop(crop), {"good": find_videos(good), "bad": find_videos(bad)}
    asked = Asked(name_references(reference or []), prompt, chosen(options), box)
    scores: dict[str, list[Any]] = {"good": [], "bad": []}
    unreadable = 0
    with progress() as bar:
        report = by_stage(bar)
        for kind, files in paths.items():
            for number, path in enumerate(files, 1):
                scored, _ = score_one(path, asked)
                if scored.score:
                    scores[kind].append(scored.score)
                else:
                    unreadable += 1
                    tell(f"skipped: {scored.unreadable}")
                report(kind, number, len(files))
    bounds = calibration.calibrate_thresholds(scores["good"], scores["bad"], asked.tools)
    write_text(out, calibration.as_toml(bounds), sealed=True)
    for bound in bounds:
        side = "min" if bound.low else "max"
        say(
            f"{bound.metric:18} {side} {bound.bound:.4g}   rejects {bound.good_refused} of {bound.good} good, accepts "
            f"{bound.bad_passed} of {bound.bad} bad"
        )
    say(json.dumps({"out": str(out), "kpis": calibration.as_rows(bounds), "unreadable": unreadable}, ensure_ascii=False))
    if unreadable:
        raise typer.Exit(3)


@evaluate.command("self-check")
def evaluate_self_check(
    videos: Annotated[
        Path | None, typer.Argument(help="Folder of videos that show faces: faults are planted in them instead of emoji clips.")
    ] = None,
    each: Annotated[int, whole(1, MAX_VIDEOS, "Number of clips per fault.")] = 200,
    clean: Annotated[int, whole(1, MAX_VIDEOS, "Number of clips without a fault.")] = 500,
    training: Annotated[bool, typer.Option(help="Use the training emoji, on which the thresholds were set.")] = False,
) -> None:
    """Measure detection and false-alarm rates of the metrics on clips with planted faults."""
    from phantom_s2v.data.synthetic.emoji import default_root, load_store
    from phantom_s2v.data.synthetic.heldout import held_out
    from phantom_s2v.evaluation import footage_check, selfcheck
    from phantom_s2v.evaluation.networks import Wanted, instruments
    from phantom_s2v.evaluation.run import find_videos

    tools = instruments(Wanted(features="efficientnet-lite0" if videos else "phantom-mini"))
    with progress() as bar:
        report = partial(by_stage(bar), "clips")
        if videos:
            scores = footage_check.run(find_videos(videos), tools, report)
        else:
            tools = replace(tools, faces=None)  # drawn things have none that dlib knows
            scores = selfcheck.run(load_store(default_root()) if training else held_out(), tools, each, clean, report)
    rows = selfcheck.table(scores, tools.limits, footage_check.PLANTED if videos else selfcheck.PLANTED)
    for fault, row in rows.items():
        (hit, low, high), (alarm, alarm_low, alarm_high) = row["detection"], row["false_alarm"]
        planted, clean_clips = row["clips"]
        say(
            f"{fault:14} found {100 * hit:5.1f}% [{100 * low:.1f}, {100 * high:.1f}]   "
            f"false alarms {100 * alarm:4.1f}% [{100 * alarm_low:.1f}, {100 * alarm_high:.1f}]   "
            f"({planted} planted, {clean_clips} clean)"
        )
    rates = ("detection", "false_alarm")
    say(json.dumps({fault: {name: row[name][0] for name in rates} for fault, row in rows.items()}))
