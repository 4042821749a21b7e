"""phantom generate, estimate: what the options ask for; cli.jobs makes it."""

import json
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Annotated

import typer

from phantom_s2v.cli.app import app, say
from phantom_s2v.cli.jobs import check_cost, make_listed, make_videos, reproduce, rewrite
from phantom_s2v.cli.options import GenerateOptions, grouped
from phantom_s2v.errors import InputError

if TYPE_CHECKING:
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import Preset
    from phantom_s2v.pipeline.batch import BestOf, Job


@app.command()
@grouped
def generate(options: GenerateOptions) -> None:
    """Generate a video from reference images and a text prompt."""
    from phantom_s2v.pipeline.batch import check_names

    refuse_unused(options)
    placement, preset = prepare(options)
    placement.check_installed()
    jobs = [] if options.from_ or options.requests else requested(options, preset)
    check_names(jobs, placement.files(), options.preview, options.force)
    best = ranked(options)
    if options.from_:
        reproduce(options.from_, options, placement)
    elif options.requests:
        make_listed(options.requests, options, preset, placement, best)
    else:
        make_videos(rewrite(jobs, options), options, placement, best)


costs = typer.Typer(no_args_is_help=False)
app.add_typer(costs, name="estimate")


@costs.callback(invoke_without_command=True)
@grouped
def estimate(
    context: typer.Context,
    *,
    card: Annotated[str | None, typer.Option(help="Estimate for a known GPU (e.g. rtx-4090) instead of this machine.")] = None,
    options: GenerateOptions,
) -> None:
    """Estimate tokens, FLOP, memory and time of `phantom generate` with the same options, or of a training: estimate train.

    No model is loaded. Without --card, this machine is benchmarked for two seconds on one transformer block.
    """
    if context.invoked_subcommand:
        return
    placement, preset = prepare(replace(options, device="cpu") if card else options)  # what is offloaded from is not here
    check_cost(
        requested(options, preset), options, placement, lambda cost, sentence: say(sentence, json.dumps(asdict(cost))), card
    )


def refuse_unused(options: GenerateOptions) -> None:
    """Raise InputError for options that --from or --requests would ignore."""
    from phantom_s2v.pipeline.batch import OPTIONS

    if not (options.from_ or options.requests):
        return
    mine = [*sorted(OPTIONS - {"out"}), "seeds", *(["requests", "rephrase"] if options.from_ else [])]
    used = [name for name in mine if getattr(options, name) != getattr(GenerateOptions, name)]
    if used:
        kind = "--from takes the options from the metadata" if options.from_ else "--requests takes the options from each line"
        raise InputError(f"{kind}; {', '.join('--' + name.replace('_', '-') for name in used)} cannot be combined with it")


def prepare(options: GenerateOptions) -> tuple["Placement", "Preset"]:
    """How the model is held, and its defaults, out of the options of generate."""
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import load_preset, model_folder, video_model
    from phantom_s2v.pipeline.batch import parse_loras

    named = [f.name for f in fields(Placement) if f.name not in ("loras", "transformer")]
    gguf = str(options.transformer) if options.transformer else None
    given = {name: getattr(options, name) for name in named}
    placement = Placement(**given, loras=parse_loras(options.lora or []), transformer=gguf)
    preset = load_preset(model_folder(options.model))
    usual, known = Placement(), video_model(model_folder(options.model)).placed
    if any(getattr(placement, name) != getattr(usual, name) for name in usual.__dataclass_fields__ if name not in known):
        raise InputError(
            f"{preset.name} runs on the CPU in float32; device, memory, cache and LoRA options are for Phantom-Wan only"
        )
    return placement, preset


def ranked(options: GenerateOptions) -> "BestOf | None":
    """What chooses among candidates. Raises InputError where there is nothing to choose by."""
    count = options.best_of
    if count == 1:
        return None
    if options.from_ or options.seeds > 1:
        raise InputError("--best-of cannot be combined with --from or --seeds")
    if not options.reference and not options.requests:
        raise InputError("--best-of needs a reference image: candidates are ranked by subject similarity")
    from phantom_s2v.evaluation.networks import Wanted, instruments
    from phantom_s2v.evaluation.score import ranking_score
    from phantom_s2v.pipeline.batch import BestOf

    tools = instruments(Wanted())
    by = f"similarity by {tools.features}"
    return BestOf(count, lambda video, images: ranking_score(video, images, tools), by, tools.hashes["similarity"])


def requested(options: GenerateOptions, preset: "Preset") -> list["Job"]:
    """One job a seed."""
    from phantom_s2v.pipeline.batch import DEFAULTED, FILES, SWITCHES, build_request

    seed, seeds, out = options.seed, options.seeds, options.out
    asked = {name: getattr(options, name) for name in (*DEFAULTED, *SWITCHES, "size", "prompt", "reference")}
    asked |= {name: str(value) if (value := getattr(options, name)) else None for name in FILES}
    jobs = []
    for number in range(seeds):
        target = out if seeds == 1 else out.with_name(f"{out.stem}-{seed + number}{out.suffix}")
        jobs.append((build_request(asked | {"seed": seed + number}, preset), target))
    return jobs
