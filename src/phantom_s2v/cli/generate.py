"""phantom generate, estimate, convert, calibrate-magcache."""

import inspect
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phantom_s2v.cli.app import MOST_VIDEOS, Force, app, by_stage, progress, say, tell, whole
from phantom_s2v.errors import InputError
from phantom_s2v.files.untrusted import printable

if TYPE_CHECKING:
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import Preset
    from phantom_s2v.pipeline.batch import BestOf, Job


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="What happens. Describe every subject.")] = "",
    reference: Annotated[
        list[str] | None, typer.Option(help="[NAME=]PATH of a picture; the same NAME again is another view.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="The video, NAME.mp4. Also writes a contact sheet (NAME.sheet.png) and metadata (NAME.metadata.json)."),
    ] = Path("video.mp4"),
    first_frame: Annotated[Path | None, typer.Option(help="A picture that the video starts from (phantom-mini).")] = None,
    background: Annotated[Path | None, typer.Option(help="A picture of the place, kept whole.")] = None,
    cutout: Annotated[bool, typer.Option(help="Remove the ground of the references: transparency, or one plain colour.")] = False,
    segmenter: Annotated[Path | None, typer.Option(help="Folder of SAM2, for grounds that are not plain.")] = None,
    several_views: Annotated[bool, typer.Option(help="Let Phantom-Wan have several pictures of one subject.")] = False,
    model: Annotated[str, typer.Option(help="Name or folder of a model, or OWNER/MODEL of a hub.")] = "phantom-mini",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Length, a multiple of 4 plus 1.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video on the same machine.")] = 0,
    seeds: Annotated[int, whole(1, MOST_VIDEOS, "Make so many videos, from seed on.")] = 1,
    best_of: Annotated[
        int, whole(1, MOST_VIDEOS, "Make so many candidates, from seed on, and keep the one whose subjects are most themselves.")
    ] = 1,
    steps: Annotated[int | None, typer.Option(help="Solver steps.")] = None,
    solver: Annotated[str | None, typer.Option(help="euler or unipc.")] = None,
    guidance_image: Annotated[float | None, typer.Option(help="Weight of the references.")] = None,
    guidance_text: Annotated[float | None, typer.Option(help="Weight of the prompt.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    untrained_size: Annotated[bool, typer.Option(help="Let sizes pass that the model was not trained at.")] = False,
    released_behaviour: Annotated[
        bool, typer.Option(help="Read pictures and draw noise as Phantom's released code does.")
    ] = False,
    preview: Annotated[
        bool, typer.Option(help="Save intermediate frames to OUT.preview.png, which is removed when the video is done.")
    ] = False,
    requests: Annotated[Path | None, typer.Option(help="JSON lines, one request each: the same names as these options.")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Reproduce a video from its .metadata.json.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1 (Phantom-Wan).")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16 (Phantom-Wan).")] = "auto",
    offload: Annotated[str, typer.Option(help="none, model or group: what waits in main memory.")] = "none",
    quantise: Annotated[str, typer.Option(help="none, fp8 or int8: how weights are stored.")] = "none",
    text_on_cpu: Annotated[bool, typer.Option(help="Read prompts on the CPU, which takes 23 GB of main memory.")] = False,
    tiling: Annotated[bool, typer.Option(help="Decode in tiles.")] = False,
    cache: Annotated[
        str,
        typer.Option(
            help="Skip work between steps, approximately: first-block, taylorseer, magcache, seacache, pab, fastercache."
        ),
    ] = "none",
    cache_threshold: Annotated[
        float | None, typer.Option(help="Change that first-block, magcache and seacache let pass; more is quicker and worse.")
    ] = None,
    cache_text: Annotated[bool, typer.Option(help="Keep keys and values of the text, exactly.")] = False,
    rephrase: Annotated[
        str | None, typer.Option(help="URL#MODEL of an OpenAI-compatible endpoint, or a model's folder, that rewrites prompts.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Refuse what would exceed 20min or 24GB, and say what fits.")] = None,
    parallel: Annotated[str, typer.Option(help="none, ulysses, ring or fsdp, under torchrun.")] = "none",
    lora: Annotated[list[str] | None, typer.Option(help="FILE[=SCALE] of a LoRA for Wan; can be given again.")] = None,
    force: Force = False,
) -> None:
    """Make a video from reference images and a prompt."""
    options = dict(locals())
    from phantom_s2v.pipeline.batch import check_names

    refuse_unused(options)
    placement, preset = prepare(options)
    placement.check_installed()
    jobs = [] if from_ or requests else requested(options, preset)
    check_names(jobs, placement.files(), preview, force)
    best = ranked(options)
    if from_:
        _again(from_, out, model, preview, placement, budget, force)
    elif requests:
        _many(requests, out, model, preset, preview, placement, budget, rephrase, best)
    else:
        jobs = worded(jobs, rephrase, model)
        run_jobs(jobs, model, preview, placement, budget=budget, best=best, rephrase=rephrase)


def refuse_unused(options: dict[str, Any]) -> None:
    """Raise InputError for options that --from or --requests, which bring their own, would leave unused."""
    from phantom_s2v.pipeline.batch import OPTIONS

    if not (options["from_"] or options["requests"]):
        return
    mine = [*sorted(OPTIONS - {"out"}), "seeds", *(["requests", "rephrase"] if options["from_"] else [])]
    usual = inspect.signature(generate).parameters
    given = [name for name in mine if options[name] != usual[name].default]
    if given:
        kind = "--from makes a recorded video again as it was" if options["from_"] else "--requests has its options in each line"
        raise InputError(f"{kind}; {', '.join('--' + name.replace('_', '-') for name in given)} must not be given with it")


def estimate(card: str | None, **options: Any) -> None:
    """Say what `phantom generate` with the same options would take: tokens, FLOP, memory and seconds. Nothing is loaded.

    Without --card, this machine is measured by two seconds of one real block.
    """
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.pipeline.cost.measure import estimate as calculate

    placement, preset = prepare(options | ({"device": "cpu"} if card else {}))  # what is offloaded from is not here
    jobs = requested(options, preset)
    count = len(jobs) * options["best_of"]
    found = calculate(jobs[0][0], preset, model_folder(options["model"]), placement, card)
    say(found.sentence() + (f", for each of {count} videos" if count > 1 else ""))
    say(json.dumps(asdict(found)))


CARD = Annotated[str | None, typer.Option(help="A card of the table instead of this machine, such as rtx-4090; computed.")]
_card = inspect.Parameter("card", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=CARD)
_same = inspect.signature(generate).parameters.values()
estimate.__signature__ = inspect.Signature([_card, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in _same)])  # type: ignore[attr-defined]
estimate.__annotations__ = {**generate.__annotations__, "card": CARD}
app.command()(estimate)


def prepare(options: dict[str, Any]) -> tuple["Placement", "Preset"]:
    """How the model is held, and its defaults, out of the options of generate."""
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import load_preset, model_folder, video_model
    from phantom_s2v.pipeline.batch import parse_loras

    named = [f.name for f in fields(Placement) if f.name != "loras"]
    placement = Placement(**{name: options[name] for name in named}, loras=parse_loras(options["lora"] or []))
    preset = load_preset(model_folder(options["model"]))
    usual, known = Placement(), video_model(model_folder(options["model"])).placed
    if any(getattr(placement, name) != getattr(usual, name) for name in usual.__dataclass_fields__ if name not in known):
        raise InputError(f"{preset.name} runs on the CPU as it is; options of device, memory, cache and LoRA are for Phantom-Wan")
    return placement, preset


def ranked(options: dict[str, Any]) -> "BestOf | None":
    """What chooses among candidates. Raises InputError where there is nothing to choose by."""
    count = options["best_of"]
    if count == 1:
        return None
    if options["from_"] or options["seeds"] > 1:
        raise InputError("best-of was given with --from or --seeds; it makes candidates of one request from its seed on")
    if not options["reference"] and not options["requests"]:
        raise InputError("best-of was given without a reference; candidates are ranked by their likeness to the references")
    from phantom_s2v.evaluation.networks import Wanted, instruments
    from phantom_s2v.evaluation.score import ranking_score
    from phantom_s2v.pipeline.batch import BestOf

    tools = instruments(Wanted())
    by = f"likeness by {tools.features}"
    return BestOf(count, lambda video, pictures: ranking_score(video, pictures, tools), by, tools.hashes["likeness"])


def requested(options: dict[str, Any], preset: "Preset") -> list["Job"]:
    """One job a seed."""
    from phantom_s2v.pipeline.batch import DEFAULTED, FILES, SWITCHES, build_request

    seed, seeds, out = options["seed"], options["seeds"], options["out"]
    asked = {name: options[name] for name in (*DEFAULTED, *SWITCHES, "size", "prompt", "reference")}
    asked |= {name: str(options[name]) if options[name] else None for name in FILES}
    jobs = []
    for number in range(seeds):
        target = out if seeds == 1 else out.with_name(f"{out.stem}-{seed + number}{out.suffix}")
        jobs.append((build_request(asked | {"seed": seed + number}, preset), target))
    return jobs


def worded(jobs: list["Job"], rephrase: str | None, model: str) -> list["Job"]:
    """The jobs with their prompts rewritten where that was asked for; else prompts that are free text are checked and kept."""
    from phantom_s2v.models.registry import model_folder, video_model
    from phantom_s2v.pipeline import prompts
    from phantom_s2v.pipeline.generate import read_pictures

    if not rephrase:
        for request, _ in jobs[:1] if video_model(model_folder(model)).checks_prompts else []:
            for line in prompts.check(request.prompt, request.subjects()):
                tell(line)
        return jobs
    done = []
    for request, target in jobs:
        text = prompts.rephrase(request.prompt, read_pictures(request)[0], rephrase)
        tell(f"the prompt is now: {text}")
        done.append((replace(request, prompt=text, asked_prompt=request.prompt), target))
    return done


def head(jobs: list["Job"], model: str, placement: "Placement", budget: str | None, candidates: int) -> None:
    """Say what the jobs will take, and refuse what exceeds the budget, naming what would fit."""
    from phantom_s2v.models.distributed import is_main
    from phantom_s2v.models.registry import load_preset, model_folder
    from phantom_s2v.pipeline.cost.estimate import parse_budget
    from phantom_s2v.pipeline.cost.measure import estimate as calculate
    from phantom_s2v.pipeline.cost.measure import within

    limit = parse_budget(budget) if budget else None
    folder = model_folder(model)
    preset = load_preset(folder)
    found = calculate(jobs[0][0], preset, folder, placement)
    count = len(jobs) * candidates
    if is_main():
        tell(f"{found.sentence()}" + (f", for each of {count} videos" if count > 1 else ""))
    if limit:
        within(limit, found, jobs[0][0], count, preset, folder, placement)


def run_jobs(
    jobs: list["Job"],
    model: str,
    preview: bool,
    placement: "Placement",
    loaded: Any = None,
    budget: str | None = None,
    best: "BestOf | None" = None,
    rephrase: str | None = None,
) -> None:
    """Check everything, load once, make every video, and name them."""
    from phantom_s2v.models.distributed import is_main, leave
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.pipeline.batch import check_job, make
    from phantom_s2v.pipeline.generate import load_for
    from phantom_s2v.pipeline.loading import check_models
    from phantom_s2v.pipeline.metadata import origin_of

    candidates = best.count if best else 1
    for request, target in jobs:
        check_job(request, target)
        if request.seed + candidates > 2**63:
            raise InputError(f"seed is {request.seed}; with {candidates} candidates it can be 0 to {2**63 - candidates}")
    if not loaded:
        check_models(model_folder(model))
    head(jobs, model, placement, budget, candidates)
    pipe = loaded or load_for([request for request, _ in jobs], model_folder(model), placement)
    main_process = is_main()  # under torchrun the others compute and stay silent
    with progress(main_process) as bar:
        for request, target in jobs:
            task = bar.add_task(printable(target.name), total=request.steps * candidates)
            ratios = pipe.step_cache.ratios if pipe.step_cache else None
            origin = origin_of(request, pipe.weights, asdict(placement), ratios, best and best.origin, rephrase)
            told = make(request, pipe, target, preview, lambda _, task=task: bar.advance(task), origin, main_process, best)
            for notice in told if main_process else []:
                tell(notice)
    for _, target in jobs if main_process else []:
        say(target)
    leave()


def _many(
    file: Path,
    out: Path,
    model: str,
    preset: "Preset",
    preview: bool,
    placement: "Placement",
    budget: str | None,
    rephrase: str | None,
    best: "BestOf | None",
) -> None:
    """All requests of a JSON lines file. A video that is there is kept where everything that made it is the same, and made again
    where not, with the reason. `out` names a folder.

    Lines that cannot be made are listed on stderr and left out: exit code 3, or 2 where none can be made.
    """
    from phantom_s2v.files.io import check_folder, naming
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.models.wan.step_cache import read_ratios
    from phantom_s2v.pipeline.batch import check_names, read_requests, remade_because
    from phantom_s2v.pipeline.loading import model_hash
    from phantom_s2v.pipeline.metadata import origin_of

    if not file.is_file():
        raise InputError(f"{file} is not a file; --requests takes JSON lines, one request each")
    folder = out.parent if out.suffix.lower() == ".mp4" and not out.is_dir() else out
    with naming(folder):
        folder.mkdir(exist_ok=True)
    check_folder(folder)
    jobs, faults, count = read_requests(file, folder, preset)
    if not count:
        raise InputError(f"{file} holds no request; nothing was made")
    check_names(jobs, [file, *placement.files()], preview, force=True)
    if faults and len(faults) == count:
        raise InputError(faults[0])
    place = model_folder(model)
    weights = model_hash(place)
    ratios = read_ratios(place, weights) if placement.cache == "magcache" else None
    chosen = best and best.origin
    origins = [origin_of(request, weights, asdict(placement), ratios, chosen, rephrase) for request, _ in jobs]
    whys = [remade_because(target, origin) for (_, target), origin in zip(jobs, origins, strict=True)]
    for (_, target), why in zip(jobs, whys, strict=True):
        if why:
            tell(f"made again: {target.name}: {why}")
    left = [job for job, why in zip(jobs, whys, strict=True) if why != ""]
    if len(left) < len(jobs):
        tell(f"{len(jobs) - len(left)} of {len(jobs)} videos are there already, made of the same")
    if left:
        jobs = worded(left, rephrase, model)
        run_jobs(jobs, model, preview, placement, budget=budget, best=best, rephrase=rephrase)
    for fault in faults:
        tell(f"not made: {fault}")
    if faults:
        raise typer.Exit(3)


def _again(file: Path, out: Path, model: str, preview: bool, placement: "Placement", budget: str | None, force: bool) -> None:
    """Make the video of a record again, and say first what has changed since.

    Memory options and LoRAs are the record's, unless others are given.
    """
    from phantom_s2v.files.io import ours, read_json
    from phantom_s2v.models.memory import Placement, placement_from
    from phantom_s2v.models.registry import load_preset, model_folder
    from phantom_s2v.pipeline.batch import check_job, check_names
    from phantom_s2v.pipeline.generate import load_for
    from phantom_s2v.pipeline.metadata import changes, check_files, request_from
    from phantom_s2v.pipeline.request import check

    record = read_json(file)
    request = request_from(record)
    placement = placement_from(record) if placement == Placement() else placement
    check_names([(request, out)], [file, *placement.files()], preview, force)
    folder = model_folder(model)
    check(request, load_preset(folder))
    check_files(record)
    check_job(request, out)
    pipe = load_for([request], folder, placement)
    said = changes(record, pipe.weights)
    if not ours(file):
        said.insert(0, f"{file.name} was changed since it was written")
    for line in said or ["nothing has changed; the video will be the same"]:
        tell(line)
    run_jobs([(request, out)], model, preview, placement, pipe, budget)


@app.command()
def convert(
    wan: Annotated[str, typer.Option(help="Folder of Wan2.1-T2V-1.3B (native, or diffusers'), or OWNER/MODEL of a hub.")],
    phantom: Annotated[str, typer.Option(help="Phantom-Wan-1.3B.pth, the folder of the 14B shards, or a community file.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
) -> None:
    """Convert the released Phantom-Wan weights to a model folder in diffusers' layout."""
    from phantom_s2v.models.registry import source_path
    from phantom_s2v.models.wan.convert import convert as run
    from phantom_s2v.pipeline.loading import model_hash

    with progress() as bar:
        told = by_stage(bar)

        def report(part: str, done: int, total: int) -> None:
            told(f"{part}, MB", done >> 20, total >> 20)

        run(source_path(wan), source_path(phantom), out, report)
    say(json.dumps({"out": str(out), "weights": model_hash(out)}))


@app.command()
def calibrate_magcache(
    model: Annotated[str, typer.Option(help="Folder of Phantom-Wan, as `phantom convert` writes it.")],
    prompt: Annotated[str, typer.Option(help="What happens, as for generate.")],
    reference: Annotated[list[str], typer.Option(help="[NAME=]PATH of a picture, as for generate.")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Length, a multiple of 4 plus 1.")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps; others are interpolated from them.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the video.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    offload: Annotated[str, typer.Option(help="none, model or group: what waits in main memory.")] = "none",
    untrained_size: Annotated[bool, typer.Option(help="Let sizes pass that the model was not trained at.")] = False,
) -> None:
    """Measure what `--cache magcache` needs to know of a model's weights, while one video is made, and write it beside them."""
    from phantom_s2v.files.io import check_outputs, write_json
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import load_preset, model_folder, video_model
    from phantom_s2v.models.wan.step_cache import RATIOS
    from phantom_s2v.pipeline.batch import build_request
    from phantom_s2v.pipeline.generate import generate as make_video
    from phantom_s2v.pipeline.generate import load_for

    folder = model_folder(model)
    preset = load_preset(folder)
    asked = {"prompt": prompt, "reference": reference, "size": size, "frames": frames, "steps": steps, "seed": seed}
    request = build_request({**asked, "untrained_size": untrained_size}, preset)
    if "cache" not in video_model(folder).placed:
        raise InputError(f"{preset.name} has no step caches; ratios are measured of Phantom-Wan")
    check_outputs([folder / RATIOS], force=True)
    placement = Placement(device=device, dtype=dtype, offload=offload, cache="magcache")
    pipe = load_for([request], folder, placement, calibrate=True)
    with progress() as bar:
        task = bar.add_task("steps", total=request.steps)
        make_video(request, pipe, lambda done, *_: bar.update(task, completed=done))
    assert pipe.step_cache
    write_json(folder / RATIOS, {"ratios": pipe.step_cache.measured, "weights": pipe.weights, "prompt": prompt}, sealed=True)
    say(folder / RATIOS)
