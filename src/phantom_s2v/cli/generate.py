"""phantom generate, estimate, convert, calibrate-magcache."""

import inspect
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phantom_s2v.cli.app import MAX_VIDEOS, Force, app, by_stage, progress, real, say, tell, whole
from phantom_s2v.errors import InputError
from phantom_s2v.files.untrusted import printable

if TYPE_CHECKING:
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import Preset
    from phantom_s2v.pipeline.batch import BestOf, Job


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="Text prompt. Describe each subject.")] = "",
    reference: Annotated[
        list[str] | None, typer.Option(help="[NAME=]PATH of a reference image. Repeat NAME for more views of one subject.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Output, NAME.mp4. Also writes a contact sheet (NAME.sheet.png) and metadata (NAME.metadata.json)."),
    ] = Path("video.mp4"),
    first_frame: Annotated[Path | None, typer.Option(help="First frame of the video (phantom-mini only).")] = None,
    background: Annotated[Path | None, typer.Option(help="Background image (never cut out).")] = None,
    cutout: Annotated[
        bool, typer.Option(help="Remove the background of reference images (uses alpha, or a uniform background color).")
    ] = False,
    segmenter: Annotated[Path | None, typer.Option(help="Path to a SAM2 model, for backgrounds that are not uniform.")] = None,
    several_views: Annotated[
        bool, typer.Option(help="Allow several images per subject with Phantom-Wan (not trained for it).")
    ] = False,
    model: Annotated[str, typer.Option(help="Model name, model folder, or OWNER/MODEL on a hub.")] = "phantom-mini",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Number of frames, 4n+1.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed. The same seed gives the same video on the same machine.")] = 0,
    seeds: Annotated[int, whole(1, MAX_VIDEOS, "Number of videos; seeds SEED, SEED+1, ...")] = 1,
    best_of: Annotated[
        int, whole(1, MAX_VIDEOS, "Generate N candidates and keep the one with the highest subject similarity.")
    ] = 1,
    num_inference_steps: Annotated[int | None, typer.Option(help="Number of denoising steps.")] = None,
    solver: Annotated[str | None, typer.Option(help="Sampler: euler or unipc.")] = None,
    image_guidance_scale: Annotated[float | None, real(0, 100, "Image guidance scale.")] = None,
    guidance_scale: Annotated[float | None, real(0, 100, "Text guidance scale.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    untrained_size: Annotated[bool, typer.Option(help="Allow resolutions the model was not trained on.")] = False,
    released_behavior: Annotated[
        bool, typer.Option(help="Preprocess images and sample noise exactly as Phantom-Wan's released code does.")
    ] = False,
    preview: Annotated[
        bool, typer.Option(help="Save intermediate previews to OUT.preview.png (removed when the video is done).")
    ] = False,
    requests: Annotated[
        Path | None, typer.Option(help="JSON Lines file with one request per line; keys are these option names with underscores.")
    ] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Reproduce a video from its .metadata.json.")] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N (Phantom-Wan).")] = "auto",
    dtype: Annotated[str, typer.Option(help="Data type: auto, float32, bfloat16 or float16 (Phantom-Wan).")] = "auto",
    offload: Annotated[str, typer.Option(help="CPU offload: none, model (whole modules), group (block by block).")] = "none",
    quantization: Annotated[str, typer.Option(help="none, fp8 or int8: how weights are stored.")] = "none",
    text_on_cpu: Annotated[bool, typer.Option(help="Run the text encoder on the CPU (needs 23 GB RAM).")] = False,
    tiling: Annotated[bool, typer.Option(help="Tiled VAE decoding (less memory).")] = False,
    cache: Annotated[
        str,
        typer.Option(help="Step cache (approximate): none, first-block, taylorseer, magcache, seacache, pab or fastercache."),
    ] = "none",
    cache_threshold: Annotated[
        float | None, real(0, 1_000, "Cache threshold (first-block, magcache, seacache); higher is faster and less accurate.")
    ] = None,
    cache_text: Annotated[bool, typer.Option(help="Cache text cross-attention K/V (bit-exact).")] = False,
    rephrase: Annotated[
        str | None,
        typer.Option(
            help="Rewrite the prompt with a language model: URL#MODEL of an OpenAI-compatible endpoint, or a model folder."
        ),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Fail if the estimate exceeds this time or memory (20min, 24GB).")] = None,
    transformer: Annotated[
        Path | None, typer.Option(help="GGUF file to use instead of the model folder's transformer (Phantom-Wan).")
    ] = None,
    parallel: Annotated[str, typer.Option(help="Multi-GPU mode under torchrun: none, ulysses, ring or fsdp.")] = "none",
    lora: Annotated[list[str] | None, typer.Option(help="FILE[=SCALE] of a Wan LoRA. Repeat for more.")] = None,
    force: Force = False,
) -> None:
    """Generate a video from reference images and a text prompt."""
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
    """Raise InputError for options that --from or --requests would ignore."""
    from phantom_s2v.pipeline.batch import OPTIONS

    if not (options["from_"] or options["requests"]):
        return
    mine = [*sorted(OPTIONS - {"out"}), "seeds", *(["requests", "rephrase"] if options["from_"] else [])]
    usual = inspect.signature(generate).parameters
    used = [name for name in mine if options[name] != usual[name].default]
    if used:
        kind = "--from takes the options from the metadata" if options["from_"] else "--requests takes the options from each line"
        raise InputError(f"{kind}; {', '.join('--' + name.replace('_', '-') for name in used)} cannot be combined with it")


def estimate(card: str | None, **options: Any) -> None:
    """Estimate tokens, FLOP, memory and time of `phantom generate` with the same options, without loading the model.

    Without --card, this machine is benchmarked for two seconds on one transformer block.
    """
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.pipeline.cost.estimate import parse_budget
    from phantom_s2v.pipeline.cost.measure import estimate as calculate
    from phantom_s2v.pipeline.cost.measure import within

    placement, preset = prepare(options | ({"device": "cpu"} if card else {}))  # what is offloaded from is not here
    jobs = requested(options, preset)
    count, folder = len(jobs) * options["best_of"], model_folder(options["model"])
    limit = parse_budget(options["budget"]) if options["budget"] else None
    estimated = calculate(jobs[0][0], preset, folder, placement, card)
    say(estimated.sentence() + (f", for each of {count} videos" if count > 1 else ""))
    say(json.dumps(asdict(estimated)))
    if limit:
        within(limit, estimated, jobs[0][0], count, preset, folder, placement)


CARD = Annotated[str | None, typer.Option(help="Estimate for a known GPU (e.g. rtx-4090) instead of this machine.")]
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

    named = [f.name for f in fields(Placement) if f.name not in ("loras", "transformer")]
    gguf = str(options["transformer"]) if options["transformer"] else None
    placement = Placement(**{n: options[n] for n in named}, loras=parse_loras(options["lora"] or []), transformer=gguf)
    preset = load_preset(model_folder(options["model"]))
    usual, known = Placement(), video_model(model_folder(options["model"])).placed
    if any(getattr(placement, name) != getattr(usual, name) for name in usual.__dataclass_fields__ if name not in known):
        raise InputError(
            f"{preset.name} runs on the CPU in float32; device, memory, cache and LoRA options are for Phantom-Wan only"
        )
    return placement, preset


def ranked(options: dict[str, Any]) -> "BestOf | None":
    """What chooses among candidates. Raises InputError where there is nothing to choose by."""
    count = options["best_of"]
    if count == 1:
        return None
    if options["from_"] or options["seeds"] > 1:
        raise InputError("--best-of cannot be combined with --from or --seeds")
    if not options["reference"] and not options["requests"]:
        raise InputError("--best-of needs a reference image: candidates are ranked by subject similarity")
    from phantom_s2v.evaluation.networks import Wanted, instruments
    from phantom_s2v.evaluation.score import ranking_score
    from phantom_s2v.pipeline.batch import BestOf

    tools = instruments(Wanted())
    by = f"similarity by {tools.features}"
    return BestOf(count, lambda video, images: ranking_score(video, images, tools), by, tools.hashes["similarity"])


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
    from phantom_s2v.pipeline.generate import request_images

    if not rephrase:
        for request, _ in jobs[:1] if video_model(model_folder(model)).checks_prompts else []:
            for line in prompts.check_prompt(request.prompt, request.subjects()):
                tell(line)
        return jobs
    done = []
    for request, target in jobs:
        text = prompts.rephrase(request.prompt, request_images(request)[0], rephrase)
        tell(f"rewritten prompt: {text}")
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
    estimated = calculate(jobs[0][0], preset, folder, placement)
    count = len(jobs) * candidates
    if is_main():
        tell(f"{estimated.sentence()}" + (f", for each of {count} videos" if count > 1 else ""))
    if limit:
        within(limit, estimated, jobs[0][0], count, preset, folder, placement)


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
            raise InputError(f"seed must be between 0 and {2**63 - candidates} with {candidates} candidates (got {request.seed})")
    if not loaded:
        check_models(model_folder(model))
    head(jobs, model, placement, budget, candidates)
    pipe = loaded or load_for([request for request, _ in jobs], model_folder(model), placement)
    main_process = is_main()  # under torchrun the others compute and stay silent
    with progress(main_process) as bar:
        for request, target in jobs:
            task = bar.add_task(printable(target.name), total=request.num_inference_steps * candidates)
            ratios = pipe.step_cache.ratios if pipe.step_cache else None
            origin = origin_of(request, pipe.weights, placement.resolved(), ratios, best and best.origin, rephrase)
            notices = make(request, pipe, target, preview, lambda _, task=task: bar.advance(task), origin, main_process, best)
            for notice in notices if main_process else []:
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
        raise InputError(f"{file} is not a file; --requests must be a JSON Lines file with one request per line")
    folder = out.parent if out.suffix.lower() == ".mp4" and not out.is_dir() else out
    with naming(folder):
        folder.mkdir(exist_ok=True)
    check_folder(folder)
    jobs, faults, count = read_requests(file, folder, preset)
    if not count:
        raise InputError(f"{file} contains no requests")
    check_names(jobs, [file, *placement.files()], preview, force=True)
    if faults and len(faults) == count:
        raise InputError(faults[0])
    place = model_folder(model)
    weights = model_hash(place)
    ratios = read_ratios(place, weights) if placement.cache == "magcache" else None
    chosen = best and best.origin
    origins = [origin_of(request, weights, placement.resolved(), ratios, chosen, rephrase) for request, _ in jobs]
    whys = [remade_because(target, origin) for (_, target), origin in zip(jobs, origins, strict=True)]
    for (_, target), why in zip(jobs, whys, strict=True):
        if why:
            tell(f"regenerating {target.name}: {why}")
    left = [job for job, why in zip(jobs, whys, strict=True) if why != ""]
    if len(left) < len(jobs):
        tell(f"{len(jobs) - len(left)} of {len(jobs)} videos are up to date and were kept")
    if left:
        jobs = worded(left, rephrase, model)
        run_jobs(jobs, model, preview, placement, budget=budget, best=best, rephrase=rephrase)
    for fault in faults:
        tell(f"skipped: {fault}")
    if faults:
        raise typer.Exit(3)


def _again(file: Path, out: Path, model: str, preview: bool, placement: "Placement", budget: str | None, force: bool) -> None:
    """Reproduce a video from its metadata, and report first what has changed since.

    Memory options and LoRAs come from the metadata unless others are given.
    """
    from phantom_s2v.files.io import ours, read_json
    from phantom_s2v.models.memory import Placement, placement_from
    from phantom_s2v.models.registry import load_preset, model_folder
    from phantom_s2v.pipeline.batch import check_job, check_names
    from phantom_s2v.pipeline.generate import load_for
    from phantom_s2v.pipeline.metadata import changes, check_files, request_from
    from phantom_s2v.pipeline.request import check_request

    metadata = read_json(file)
    request = request_from(metadata)
    placement = placement_from(metadata) if placement == Placement() else placement
    check_names([(request, out)], [file, *placement.files()], preview, force)
    folder = model_folder(model)
    check_request(request, load_preset(folder))
    check_files(metadata)
    check_job(request, out)
    pipe = load_for([request], folder, placement)
    changed = changes(metadata, pipe.weights)
    if not ours(file):
        changed.insert(0, f"{file.name} was modified after it was written")
    for line in changed or ["nothing has changed; the video will be identical"]:
        tell(line)
    run_jobs([(request, out)], model, preview, placement, pipe, budget)


@app.command()
def convert(
    wan: Annotated[str, typer.Option(help="Wan2.1-T2V-1.3B folder (native or diffusers layout), or OWNER/MODEL on a hub.")],
    phantom: Annotated[
        str, typer.Option(help="Phantom-Wan-1.3B.pth, the folder with the 14B shards, or a community single file.")
    ],
    out: Annotated[Path, typer.Option(help="Output model folder.")],
) -> None:
    """Convert the released Phantom-Wan weights to the diffusers layout."""
    from phantom_s2v.models.registry import source_path
    from phantom_s2v.models.wan.convert import convert as run
    from phantom_s2v.pipeline.loading import model_hash

    with progress() as bar:
        report_stage = by_stage(bar)

        def report(part: str, done: int, total: int) -> None:
            report_stage(f"{part}, MB", done >> 20, total >> 20)

        run(source_path(wan), source_path(phantom), out, report)
    say(json.dumps({"out": str(out), "weights": model_hash(out)}))


@app.command()
def calibrate_magcache(
    model: Annotated[str, typer.Option(help="Phantom-Wan model folder (from `phantom convert`).")],
    prompt: Annotated[str, typer.Option(help="Text prompt.")],
    reference: Annotated[list[str], typer.Option(help="[NAME=]PATH of a reference image.")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Number of frames, 4n+1.")] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(help="Number of denoising steps; other step counts are interpolated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Data type: auto, float32, bfloat16 or float16.")] = "auto",
    offload: Annotated[str, typer.Option(help="CPU offload: none, model (whole modules), group (block by block).")] = "none",
    untrained_size: Annotated[bool, typer.Option(help="Allow resolutions the model was not trained on.")] = False,
) -> None:
    """Measure the residual ratios for `--cache magcache` by generating one video; they are saved in the model folder."""
    from phantom_s2v.files.io import check_outputs, write_json
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import load_preset, model_folder, video_model
    from phantom_s2v.models.wan.step_cache import RATIOS
    from phantom_s2v.pipeline.batch import build_request
    from phantom_s2v.pipeline.generate import generate as make_video
    from phantom_s2v.pipeline.generate import load_for

    folder = model_folder(model)
    preset = load_preset(folder)
    asked = {
        "prompt": prompt,
        "reference": reference,
        "size": size,
        "num_frames": num_frames,
        "num_inference_steps": num_inference_steps,
        "seed": seed,
    }
    request = build_request({**asked, "untrained_size": untrained_size}, preset)
    if "cache" not in video_model(folder).placed:
        raise InputError(f"{preset.name} has no step caches; MagCache is for Phantom-Wan only")
    check_outputs([folder / RATIOS], force=True)
    placement = Placement(device=device, dtype=dtype, offload=offload, cache="magcache")
    pipe = load_for([request], folder, placement, calibrate_magcache=True)
    with progress() as bar:
        task = bar.add_task("steps", total=request.num_inference_steps)
        make_video(request, pipe, lambda done, *_: bar.update(task, completed=done))
    assert pipe.step_cache
    write_json(folder / RATIOS, {"ratios": pipe.step_cache.measured, "weights": pipe.weights, "prompt": prompt}, sealed=True)
    say(folder / RATIOS)
