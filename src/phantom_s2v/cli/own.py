"""phantom encode, and phantom train --preset: fine-tuning on one's own triplets."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phantom_s2v.cli.app import MAX_SEED, MAX_STEPS, app, progress, real, say, tell, train, whole
from phantom_s2v.cli.generate import costs
from phantom_s2v.cli.options import AllowChange, Device, DType, Ray, TextOnCpu, Workers
from phantom_s2v.errors import InputError
from phantom_s2v.files.io import read_text
from phantom_s2v.files.untrusted import exists, parse_toml, typed

Latents = Annotated[
    list[str] | None,
    typer.Option(
        help="Dataset of latents (phantom encode). May be given several times; FOLDER=STEP is mixed in from that step on."
    ),
]
Parallel = Annotated[
    str | None, typer.Option(help="Under torchrun: ddp, fsdp or hsdp (docs/training.md); default: the preset's.")
]
PRESETS = "mini, mini-lora, wan-1.3b, wan-1.3b-lora or wan-14b-lora."

if TYPE_CHECKING:
    from phantom_s2v.data.buckets import Plan, Target
    from phantom_s2v.data.triplets import TripletStore
    from phantom_s2v.training.config import OwnConfig
    from phantom_s2v.training.encoding import Encoders


@app.command("encode")
def encode(
    store: Annotated[Path, typer.Argument(help="Triplet dataset, NAME.lance (phantom data build or import).")],
    out: Annotated[Path, typer.Option(help="Output dataset of latents, NAME.lance. An existing one is brought up to date.")],
    model: Annotated[str, typer.Option(help="Model that encodes: name, folder, or OWNER/MODEL on a hub.")] = "phantom-mini",
    size: Annotated[
        str | None, typer.Option(help="Size of which videos have at most the area, WIDTHxHEIGHT; default: the model's.")
    ] = None,
    num_frames: Annotated[int | None, whole(1, 10_000, "Maximum number of frames (4n+1); default: the model's.")] = None,
    fps: Annotated[float | None, real(0.1, 1_000, "Frame rate to which videos are resampled; default: the model's.")] = None,
    references: Annotated[
        str,
        typer.Option(help="What to show of reference images: whole, box (of the subject), or cutout (by its mask, on white)."),
    ] = "whole",
    text_on_cpu: TextOnCpu = False,
    workers: Workers = 1,
    ray: Ray = "",
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Encode triplets for training: latents of videos and references, features of captions.

    Videos keep their aspect ratio: each is scaled and center-cropped to the nearest of eight, never enlarged. Triplets that
    are encoded already are kept; those that left the dataset are removed. Under torchrun each process encodes a share; with
    --ray, --workers actors do. Writes OUT.sheet.png. Exit code 3 if some triplets cannot be encoded.
    """
    from phantom_s2v.data.buckets import Target, plan
    from phantom_s2v.data.sheet import write_sheet
    from phantom_s2v.data.triplets import TripletStore
    from phantom_s2v.files.reuse import code_version
    from phantom_s2v.geometry import VideoSize, parse_size
    from phantom_s2v.models.distributed import is_main
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import load_preset, model_folder
    from phantom_s2v.training.encoded import EncodedStore
    from phantom_s2v.training.encoding import Encoders
    from phantom_s2v.training.guard import encoder_hashes

    folder = model_folder(model)
    preset, source = load_preset(folder), TripletStore(store)
    width, height = parse_size(size) if size else (preset.width, preset.height)
    frames = VideoSize(num_frames or preset.num_frames, height, width).frames
    target = Target(height * width, frames, fps or float(preset.fps), preset.multiple, references)
    origin = {**encoder_hashes(folder), "target": asdict(target), "dtype": dtype, "code": code_version("training.encoding")}
    if out.exists():
        EncodedStore(out, origin)  # a dataset that was made otherwise is refused before anything is said of clips
    planned = plan(source, target, tell if is_main() else lambda line: None)
    if is_main():
        latents = EncodedStore.create(out, origin)
        write_sheet(source, planned, target, out.with_suffix(".sheet.png"))
    placement = Placement(device=device, dtype=dtype, text_on_cpu=text_on_cpu)
    new, refused = _encode(source, out, origin, Encoders(folder.absolute(), placement), target, planned, workers, ray)
    if not is_main():
        return
    latents = EncodedStore(out, origin)
    refused += len(planned.refused)
    if not new:
        tell("nothing was to be encoded; all of it was there")
    if len(latents):
        tell(_next(preset.name, model, out))
    say(json.dumps({"new": new, "triplets": len(latents), "left_out": refused}))
    if refused:
        raise typer.Exit(3)


def _next(name: str, model: str, latents: Path) -> str:
    """What to do with the latents of a model."""
    from phantom_s2v.training.recipes import OWN

    preset = next((key for key, (base, _) in reversed(OWN.items()) if base == name), "PRESET")
    given = f"--preset {preset} --model {shlex.quote(model)} --latents {shlex.quote(str(latents))}"
    return f"next: phantom estimate train {given}, then phantom train {given} --out RUN"


def _encode(
    source: "TripletStore",
    out: Path,
    origin: dict[str, Any],
    encoders: "Encoders",
    target: "Target",
    planned: "Plan",
    workers: int,
    ray: str,
) -> tuple[int, ...]:
    """Encode what `out` lacks, with a bar; how many were encoded, and how many cannot be, by all processes."""
    from phantom_s2v.models.distributed import is_main
    from phantom_s2v.training import encoding
    from phantom_s2v.training.encoded import EncodedStore

    with encoding.together() as everyone:  # the first process has made the dataset
        refused: list[str] = []

        def refuse(key: str, reason: str) -> None:
            refused.append(key)
            tell(f"skipped: {key}: {reason}")

        latents = EncodedStore(out, origin)
        keys = everyone.share(encoding.bring_up_to_date(source, latents, planned, target) if is_main() else [])
        with progress(is_main()) as bar:
            task = bar.add_task("encoding", total=len(keys))
            given = (source, keys, encoders, target, planned)
            step: Any = lambda count: bar.advance(task, count)  # noqa: E731
            if ray:
                rows = encoding.on_ray(*given, workers, ray, step, refuse)
            else:
                rows = encoding.rows_of(*given, step, refuse, begun=tell if is_main() else None)
            new = latents.write(rows)
        return everyone.sums(new, len(refused))


@train.callback(invoke_without_command=True)
def train_own(
    context: typer.Context,
    preset: Annotated[str | None, typer.Option(help=PRESETS)] = None,
    latents: Latents = None,
    out: Annotated[Path | None, typer.Option(help="Output folder of the run.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to fine-tune; default: the preset's.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with fields of the configuration that differ from the preset.")
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the whole configuration as JSON and exit.")] = False,
    steps: Annotated[int | None, whole(1, MAX_STEPS, "Number of optimizer steps; default: the preset's.")] = None,
    seed: Annotated[int | None, whole(0, MAX_SEED, "Random seed; default: the preset's.")] = None,
    parallel: Parallel = None,
    bad_data: Annotated[
        str | None, typer.Option(help="What to do where triplets cannot be used: stop, or skip them; default: stop.")
    ] = None,
    allow_change: AllowChange = None,
    text_on_cpu: TextOnCpu = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Train: with --preset, fine-tune a model on your own triplets; with a command, one component of phantom-mini.

    Resumes from the last checkpoint in --out. `phantom estimate train` says beforehand how long it takes.
    """
    if context.invoked_subcommand:
        return
    name, chosen = _configured(preset, config, steps=steps, seed=seed, parallel=parallel, may_change=allow_change)
    chosen = replace(chosen, bad_data=bad_data or chosen.bad_data)
    if print_config:
        say(*json.dumps(asdict(chosen), indent=1).splitlines())
        return
    if not latents or out is None:
        raise InputError("--latents and --out are needed for training; phantom encode makes the latents")
    from phantom_s2v.models.distributed import is_main
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.training import own

    score = _similarity() if chosen.evaluate and chosen.samples else None
    placement = Placement(device=device, dtype=dtype, text_on_cpu=text_on_cpu)
    made = own.run(chosen, model_folder(model or name), parse_latents(latents), out, placement, score)
    if is_main():
        used = f"--model {shlex.quote(model or name)} --lora" if chosen.lora else "--model"
        tell(f'next: phantom generate {used} {shlex.quote(made["written"])} --reference NAME=IMAGE.png --prompt "..."')
        say(json.dumps(made))


@costs.command("train")
def estimate_train(
    preset: Annotated[str, typer.Option(help=PRESETS)],
    latents: Latents = None,
    size: Annotated[str | None, typer.Option(help="Size without a dataset, WIDTHxHEIGHT; default: the model's.")] = None,
    num_frames: Annotated[int | None, whole(1, 10_000, "Number of frames without a dataset; default: the model's.")] = None,
    references: Annotated[int, whole(0, 8, "Number of reference images without a dataset.")] = 1,
    steps: Annotated[int | None, whole(1, MAX_STEPS, "Number of optimizer steps; default: the preset's.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to fine-tune; default: the preset's.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file as phantom train takes it.")] = None,
    card: Annotated[str | None, typer.Option(help="Estimate for a known GPU (e.g. rtx-4090) instead of this machine.")] = None,
    num_processes: Annotated[int, whole(1, 100_000, "Number of processes under torchrun, each on a GPU of its own.")] = 1,
    parallel: Parallel = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Estimate memory, seconds a step and days of `phantom train`. The model need not be here if --card is given."""
    from phantom_s2v.geometry import VideoSize, parse_size
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.training import cost
    from phantom_s2v.training.encoded import JoinedStore

    name, chosen = _configured(preset, config, steps=steps, parallel=parallel)
    if latents:
        works = cost.works_of(chosen, JoinedStore.open(parse_latents(latents)))
    else:
        usual = cost.usual_size(model or name)
        width, height = parse_size(size) if size else (usual.width, usual.height)
        works = [cost.Work(VideoSize(num_frames or usual.frames, height, width), references, chosen.batch_size)]
    placement = Placement(device="cpu" if card else device, dtype=dtype)
    estimated = cost.estimate_training(chosen, model or name, works, placement, card, num_processes)
    say(estimated.sentence(), json.dumps(asdict(estimated)))


def parse_latents(texts: list[str]) -> dict[Path, int]:
    """Step from which each dataset is learned from, of every "FOLDER[=STEP]"; a folder whose own name holds "=" is taken as it
    is.
    """
    found = dict[Path, int]()
    for text in texts:
        folder, equals, step = text.rpartition("=")
        if not equals or exists(Path(text)):
            folder, step = text, "0"
        if not step.isdecimal():
            raise InputError(f"latents must be FOLDER or FOLDER=STEP with a whole number (got {text!r})")
        if Path(folder) in found:
            raise InputError(f"{folder} was given twice; a dataset of latents joins once")
        found[Path(folder)] = int(step)
    return found


def _configured(preset: str | None, config: Path | None, **given: Any) -> tuple[str, "OwnConfig"]:
    """The model of a preset, and its configuration with the fields of a file, and those of "train" that are given."""
    from phantom_s2v.training import recipes

    if preset is None:
        raise InputError(f"--preset is needed to fine-tune: {PRESETS[:-1]}; or a command, such as phantom train transformer")
    if preset not in recipes.OWN:
        raise InputError(f"preset must be {PRESETS[:-1]} (got {preset!r})")
    name, recipe = recipes.OWN[preset]
    chosen = read_config(recipe(), config)
    given["may_change"] = (*chosen.train.may_change, *(given.get("may_change") or ()))
    return name, replace(chosen, train=replace(chosen.train, **{key: value for key, value in given.items() if value is not None}))


def _similarity() -> Any:
    """What measures the similarity of the subjects of a sample to its references, as phantom generate --best-of does."""
    from phantom_s2v.evaluation.networks import Wanted, instruments
    from phantom_s2v.evaluation.score import ranking_score
    from phantom_s2v.media.images import read_video

    tools = instruments(Wanted())
    return lambda video, references: ranking_score(read_video(video)[0], references, tools)


def read_config(config: Any, file: Path | None) -> Any:
    """A configuration with the fields of a TOML file. Raises InputError that names an unknown field or one of another type."""
    if file is None:
        return config
    from phantom_s2v.training.aliases import known

    try:
        return typed(type(config), _over(asdict(config), known(parse_toml(read_text(file)), tell)), "the configuration")
    except (ValueError, InputError) as error:
        said = str(error)
        raise InputError(said if said.startswith(str(file)) else f"{file}: {said}") from error


def _over(base: Any, changes: Any) -> Any:
    """`base` with the values of `changes`, table by table."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: _over(base.get(key), value) for key, value in changes.items()}}
