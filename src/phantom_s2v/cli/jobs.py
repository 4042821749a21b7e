"""The jobs of phantom generate: their prompts, their cost, and their videos, with what is said on the way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from phantom_s2v.cli.app import progress, say, tell
from phantom_s2v.cli.options import GenerateOptions
from phantom_s2v.errors import InputError
from phantom_s2v.files.untrusted import printable

if TYPE_CHECKING:
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import Preset
    from phantom_s2v.pipeline.batch import BestOf, Job
    from phantom_s2v.pipeline.cost.estimate import Estimate


def rewrite(jobs: list["Job"], options: GenerateOptions) -> list["Job"]:
    """The jobs with their prompts rewritten where that was asked for; else prompts that are free text are checked and kept."""
    from phantom_s2v.models.registry import model_folder, video_model
    from phantom_s2v.pipeline import prompts
    from phantom_s2v.pipeline.generate import request_images

    if not options.rephrase:
        for request, _ in jobs[:1] if video_model(model_folder(options.model)).checks_prompts else []:
            for line in prompts.check_prompt(request.prompt, request.subjects()):
                tell(line)
        return jobs
    done = []
    for request, target in jobs:
        text = prompts.rephrase(request.prompt, request_images(request)[0], options.rephrase)
        tell(f"rewritten prompt: {text}")
        done.append((replace(request, prompt=text, asked_prompt=request.prompt), target))
    return done


def check_cost(
    jobs: list["Job"],
    options: GenerateOptions,
    placement: "Placement",
    show: Callable[["Estimate", str], None],
    card: str | None = None,
) -> None:
    """Show what the jobs will take, and refuse what exceeds the budget, naming what would fit."""
    from phantom_s2v.models.registry import load_preset, model_folder
    from phantom_s2v.pipeline.cost.estimate import parse_budget
    from phantom_s2v.pipeline.cost.measure import estimate, within

    limit = parse_budget(options.budget) if options.budget else None
    folder, count = model_folder(options.model), len(jobs) * options.best_of
    preset = load_preset(folder)
    estimated = estimate(jobs[0][0], preset, folder, placement, card)
    show(estimated, estimated.sentence() + (f", for each of {count} videos" if count > 1 else ""))
    if limit:
        within(limit, estimated, jobs[0][0], count, preset, folder, placement)


def make_videos(
    jobs: list["Job"], options: GenerateOptions, placement: "Placement", best: "BestOf | None" = None, loaded: Any = None
) -> None:
    """Check everything, load once, make every video, and name them."""
    from phantom_s2v.models.distributed import is_main, leave
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.pipeline.batch import check_job, make
    from phantom_s2v.pipeline.generate import load_for
    from phantom_s2v.pipeline.loading import check_models
    from phantom_s2v.pipeline.metadata import origin_of

    candidates, folder = options.best_of, model_folder(options.model)
    for request, target in jobs:
        check_job(request, target)
        if request.seed + candidates > 2**63:
            raise InputError(f"seed must be between 0 and {2**63 - candidates} with {candidates} candidates (got {request.seed})")
    if not loaded:
        check_models(folder)
    check_cost(jobs, options, placement, lambda _, sentence: tell(sentence) if is_main() else None)
    pipe = loaded or load_for([request for request, _ in jobs], folder, placement)
    main_process = is_main()  # under torchrun the others compute and stay silent
    with progress(main_process) as bar:
        for request, target in jobs:
            task = bar.add_task(printable(target.name), total=request.num_inference_steps * candidates)
            ratios = pipe.step_cache.ratios if pipe.step_cache else None
            chosen_by = best and best.origin
            origin = origin_of(request, pipe.weights, placement.resolved(), ratios, chosen_by, options.rephrase)
            notices = make(
                request, pipe, target, options.preview, lambda _, task=task: bar.advance(task), origin, main_process, best
            )
            for notice in notices if main_process else []:
                tell(notice)
    for _, target in jobs if main_process else []:
        say(target)
    leave()


def make_listed(file: Path, options: GenerateOptions, preset: "Preset", placement: "Placement", best: "BestOf | None") -> None:
    """All requests of a JSON lines file. A video that is there is kept where everything that made it is the same, and made again
    where not, with the reason. `--out` names a folder.

    Lines that cannot be made are listed on stderr and left out: exit code 3, or 2 where none can be made.
    """
    jobs, faults = _listed(file, options, preset, placement)
    left = _outdated(jobs, options, placement, best)
    if len(left) < len(jobs):
        tell(f"{len(jobs) - len(left)} of {len(jobs)} videos are up to date and were kept")
    if left:
        make_videos(rewrite(left, options), options, placement, best)
    for fault in faults:
        tell(f"skipped: {fault}")
    if faults:
        raise typer.Exit(3)


def _listed(file: Path, options: GenerateOptions, preset: "Preset", placement: "Placement") -> tuple[list["Job"], list[str]]:
    """The jobs of a JSON lines file, and what is wrong with its other lines. Raises InputError where there is no job."""
    from phantom_s2v.files.io import check_folder, naming
    from phantom_s2v.pipeline.batch import check_names, read_requests

    if not file.is_file():
        raise InputError(f"{file} is not a file; --requests must be a JSON Lines file with one request per line")
    out = options.out
    folder = out.parent if out.suffix.lower() == ".mp4" and not out.is_dir() else out
    with naming(folder):
        folder.mkdir(exist_ok=True)
    check_folder(folder)
    jobs, faults, count = read_requests(file, folder, preset)
    if not count:
        raise InputError(f"{file} contains no requests")
    check_names(jobs, [file, *placement.files()], options.preview, force=True)
    if faults and len(faults) == count:
        raise InputError(faults[0])
    return jobs, faults


def _outdated(jobs: list["Job"], options: GenerateOptions, placement: "Placement", best: "BestOf | None") -> list["Job"]:
    """The jobs whose video is not there, or was made by something else, which is said."""
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.models.wan.step_cache import read_ratios
    from phantom_s2v.pipeline.batch import remade_because
    from phantom_s2v.pipeline.loading import model_hash
    from phantom_s2v.pipeline.metadata import origin_of

    folder, chosen_by = model_folder(options.model), best and best.origin
    weights = model_hash(folder)
    ratios = read_ratios(folder, weights) if placement.cache == "magcache" else None
    origins = [origin_of(request, weights, placement.resolved(), ratios, chosen_by, options.rephrase) for request, _ in jobs]
    whys = [remade_because(target, origin) for (_, target), origin in zip(jobs, origins, strict=True)]
    for (_, target), why in zip(jobs, whys, strict=True):
        if why:
            tell(f"regenerating {target.name}: {why}")
    return [job for job, why in zip(jobs, whys, strict=True) if why != ""]


def reproduce(file: Path, options: GenerateOptions, placement: "Placement") -> None:
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
    request, out = request_from(metadata), options.out
    placement = placement_from(metadata) if placement == Placement() else placement
    check_names([(request, out)], [file, *placement.files()], options.preview, options.force)
    folder = model_folder(options.model)
    check_request(request, load_preset(folder))
    check_files(metadata)
    check_job(request, out)
    pipe = load_for([request], folder, placement)
    changed = changes(metadata, pipe.weights)
    if not ours(file):
        changed.insert(0, f"{file.name} was modified after it was written")
    for line in changed or ["nothing has changed; the video will be identical"]:
        tell(line)
    make_videos([(request, out)], options, placement, loaded=pipe)
