"""phantom evaluate run, autoencoder, score: suites of a model, and videos that are there."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phantom_s2v.cli.app import MAX_ROW, by_stage, evaluate, progress, say, tell, whole
from phantom_s2v.cli.options import Crop, Force, KpiFile, ModelFolder, Networks, Reconstruct, References, grouped
from phantom_s2v.errors import InputError
from phantom_s2v.geometry import SPACE_STRIDE
from phantom_s2v.pipeline.request import MAX_SIDE

if TYPE_CHECKING:
    import numpy as np

    from phantom_s2v.evaluation.instruments import Instruments
    from phantom_s2v.evaluation.run import SuiteResult
    from phantom_s2v.evaluation.suites.own import Case
    from phantom_s2v.files.reuse import Origin
    from phantom_s2v.pipeline.request import Request


def load_networks(
    networks: Networks, suite: str = "", curricularface: str = "", vlm: str = "", gme: str = "", **more: str
) -> "Instruments":
    """The instruments that a command's options name; `more` are fields of evaluation.networks.Wanted."""
    from phantom_s2v.evaluation.networks import Wanted, instruments

    if networks.object_detector and not (networks.segmenter or suite == "opens2v"):
        raise InputError("--object-detector needs --segmenter")
    if suite != "opens2v" and (curricularface or vlm or gme):
        raise InputError("--curricularface, --vlm and --gme are for the opens2v suite only")
    return instruments(Wanted(**asdict(networks), curricularface=curricularface, vlm=vlm, gme=gme, **more))


@evaluate.command("run")
@grouped
def evaluate_run(
    *,
    suite: Annotated[str, typer.Argument(help="Suite: emoji, robustness, opens2v, or a folder with cases.jsonl.")],
    path: Annotated[
        Path | None, typer.Argument(help="opens2v only: its JSON file of cases, in the folder of its images.")
    ] = None,
    model: ModelFolder = "phantom-mini",
    videos: Annotated[
        Path | None, typer.Option(help="Folder of existing videos, ID.mp4, to score instead of generating.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. An existing run is resumed.")] = None,
    limit: Annotated[int | None, whole(1, MAX_ROW, "Maximum number of subjects or cases.")] = None,
    size: Annotated[
        int | None,
        whole(SPACE_STRIDE, MAX_SIDE, "emoji only: side of the videos in pixels; default: the model's."),
    ] = None,
    networks: Networks,
    curricularface: Annotated[str, typer.Option(help="opens2v only: CurricularFace model (.onnx) for FaceSim-Cur.")] = "",
    vlm: Annotated[str, typer.Option(help="opens2v only: vision-language model for our NaturalScore.")] = "",
    gme: Annotated[str, typer.Option(help="opens2v only: GME on Qwen2-VL for our GmeScore.")] = "",
    reconstruct: Reconstruct = "references",
    kpi: KpiFile = None,
) -> None:
    """Generate and score a benchmark suite. The last line is JSON.

    Exit codes: 1 if a KPI is missed, 2 for bad input, 3 if some videos could not be read.
    """
    from phantom_s2v.evaluation.kpi import check_networks, read_kpis
    from phantom_s2v.evaluation.suites import own

    check_suite(suite, path, size)
    target, opens2v = out or Path("outputs") / Path(suite).name, suite == "opens2v"
    if suite == "emoji":
        run_emoji_suite(model, target, limit, size)
        return
    kpis = read_kpis(kpi) if kpi else []
    tools = load_networks(networks, suite, curricularface, vlm, gme, reconstruct=reconstruct, model=model)
    check_networks(kpis, tools)
    target.mkdir(parents=True, exist_ok=True)
    cases, clips = cases_of(suite, path, target, tools, limit)
    results = target / f"{Path(model).name if not videos else videos.name}_output_json"
    if opens2v:
        own.check_opens2v(results)
    made = videos or target / "videos"
    make = None if videos else maker(model, cases, clips, made)
    with progress() as bar:
        result = own.run_suite(cases, made, make, tools, kpis, target, by_stage(bar))
    if opens2v:
        result.lines += [f"wrote {file}" for file in own.write_opens2v(cases, made, tools, results)]
    say(*result.lines, *own.kind_lines(result.summary["by_kind"]))
    finish(result, {"suite": suite, "model": None if videos else model})


def check_suite(suite: str, path: Path | None, size: int | None) -> None:
    """Raise InputError for no suite, and for what is not for this one."""
    if size is not None and suite != "emoji":
        raise InputError(f"--size is for the emoji suite only (got {suite})")
    if (suite == "opens2v") != (path is not None):
        raise InputError("the path of a JSON file is required for opens2v, and for no other suite")
    if suite not in ("emoji", "robustness", "opens2v") and not Path(suite).is_dir():
        raise InputError(f"suite must be emoji, robustness, opens2v or a folder with cases.jsonl (got {suite!r})")


def run_emoji_suite(model: str, out: Path, limit: int | None, size: int | None) -> None:
    """The emoji suite, with its subject classifier."""
    from phantom_s2v.evaluation.reports.table import table
    from phantom_s2v.evaluation.suites.emoji import PAGE, run_emoji
    from phantom_s2v.geometry import VideoSize
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.pipeline.loading import load_models

    pipe = load_models(model_folder(model))
    side = VideoSize(pipe.preset.num_frames, size, size).height if size else None
    with progress() as bar:
        task = bar.add_task("videos", total=None)
        figures = run_emoji(pipe, out, limit, lambda done, total: bar.update(task, completed=done, total=total), side)
    say(*table(figures).splitlines())
    say(json.dumps(figures | {"model": pipe.preset.name, "weights": pipe.weights, "report": str(out / PAGE)}))


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
    from phantom_s2v.media import images
    from phantom_s2v.models.registry import load_preset, model_folder
    from phantom_s2v.pipeline.batch import build_request, check_job, make, note_video, remade_because
    from phantom_s2v.pipeline.generate import load_for
    from phantom_s2v.pipeline.loading import check_models

    folder = model_folder(model)
    check_models(folder)
    preset = load_preset(folder)
    videos.mkdir(parents=True, exist_ok=True)
    requests = {case.id: build_request(case.request, preset) for case in cases if case.id not in clips}
    for name, request in requests.items():
        check_job(request, videos / f"{name}.mp4")
    origins = origins_of(requests, clips, folder, preset.fps)
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


def origins_of(requests: dict[str, "Request"], clips: dict[str, "np.ndarray"], folder: Path, fps: int) -> dict[str, "Origin"]:
    """What makes the video of each case: a request to a model, or a clip that needs none."""
    from phantom_s2v.evaluation.robustness import clip_origin
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.pipeline.loading import model_hash
    from phantom_s2v.pipeline.metadata import origin_of

    weights = model_hash(folder)
    made = {name: origin_of(request, weights, asdict(Placement())) for name, request in requests.items()}
    return made | {name: clip_origin(clip, fps) for name, clip in clips.items()}


def finish(result: "SuiteResult", fields: dict[str, Any]) -> None:
    """The last line, and the exit code."""
    say(json.dumps({**fields, **result.summary}, ensure_ascii=False))
    if result.missed:
        raise typer.Exit(1)
    if result.unreadable:
        raise typer.Exit(3)


@evaluate.command("autoencoder")
def evaluate_autoencoder(
    model: ModelFolder = "phantom-mini",
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
@grouped
def evaluate_score(
    *,
    videos: Annotated[Path, typer.Argument(help="Video file or folder.")],
    reference: References = None,
    prompt: Annotated[str, typer.Option(help="Text prompt of the videos; positions it gives to subjects are checked.")] = "",
    networks: Networks,
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
    from phantom_s2v.evaluation.kpi import check_networks, read_kpis
    from phantom_s2v.evaluation.run import Asked, find_videos, name_references, parse_crop, score_all
    from phantom_s2v.files.io import check_outputs
    from phantom_s2v.media.pages import later_pages

    if out:
        check_outputs([out, *later_pages(out)], force=force, suffix=".html")
        check_outputs([out.with_suffix(".jsonl")], force=force)
    kpis, box, paths = read_kpis(kpi) if kpi else [], parse_crop(crop), find_videos(videos)
    named, tools = name_references(reference or []), load_networks(networks, reconstruct=reconstruct, model=model)
    if not named:
        tell("no --reference given: only video quality (motion, flicker) is measured")
    check_networks(kpis, tools)
    asked = Asked(named, prompt, tools, box, kpis)
    with progress() as bar:
        result = score_all([(path, asked) for path in paths], out, partial(by_stage(bar), "videos"))
    say(*result.lines)
    finish(result, {})
