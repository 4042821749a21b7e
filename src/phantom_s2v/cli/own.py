"""phantom encode, and phantom train --preset: fine-tuning on one's own triplets."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from phantom_s2v.cli.app import MAX_SEED, MAX_STEPS, app, progress, real, say, tell, train, whole
from phantom_s2v.errors import InputError
from phantom_s2v.files.io import read_text
from phantom_s2v.files.untrusted import parse_toml, typed

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DType = Annotated[str, typer.Option(help="auto (bfloat16 on a GPU, float32 on a CPU), float32, bfloat16 or float16.")]


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
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Encode triplets for training: latents of videos and references, features of captions.

    Videos keep their aspect ratio: each is scaled and center-cropped to the nearest of eight, never enlarged. Triplets that
    are encoded already are kept; those that left the dataset are removed. Exit code 3 if some triplets cannot be encoded.
    """
    from phantom_s2v.data.triplets import TripletStore
    from phantom_s2v.files.reuse import code_version
    from phantom_s2v.geometry import VideoSize, parse_size
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import load_preset, model_folder
    from phantom_s2v.pipeline.loading import load_models
    from phantom_s2v.training import encoded
    from phantom_s2v.training.guard import encoder_hashes

    folder = model_folder(model)
    preset, source = load_preset(folder), TripletStore(store)
    width, height = parse_size(size) if size else (preset.width, preset.height)
    frames = VideoSize(num_frames or preset.num_frames, height, width).frames
    target = encoded.Target(height * width, frames, fps or float(preset.fps), preset.multiple)
    origin = {**encoder_hashes(folder), "target": asdict(target), "dtype": dtype, "code": code_version("training.encoded")}
    planned, refused = encoded.plan(source, target), 0

    def refuse(key: str, reason: str) -> None:
        nonlocal refused
        refused += 1
        tell(f"skipped: {key}: {reason}")

    for key, reason in planned.refused.items():
        refuse(key, reason)
    latents = encoded.EncodedStore.create(out, origin)
    pipe = load_models(folder, Placement(device=device, dtype=dtype))
    channels = int(pipe.vae.config["z_dim"])
    tell(
        f"{len(planned.buckets)} triplets, {len(set(planned.buckets.values()))} sizes, about {planned.gigabytes(channels):.3g} GB"
    )
    with progress() as bar:
        task = bar.add_task("encoding", total=len(source))
        new = encoded.encode_store(
            source, latents, pipe, target, planned, lambda count: bar.update(task, completed=count), refuse
        )
    say(json.dumps({"new": new, "triplets": len(latents), "left_out": refused}))
    if refused:
        raise typer.Exit(3)


@train.callback(invoke_without_command=True)
def train_own(
    context: typer.Context,
    preset: Annotated[str | None, typer.Option(help="mini, mini-lora, wan-1.3b, wan-1.3b-lora or wan-14b-lora.")] = None,
    latents: Annotated[Path | None, typer.Option(help="Dataset of latents (phantom encode).")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder of the run.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to fine-tune; default: the preset's.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with fields of the configuration that differ from the preset.")
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the whole configuration as JSON and exit.")] = False,
    steps: Annotated[int | None, whole(1, MAX_STEPS, "Number of optimizer steps; default: the preset's.")] = None,
    seed: Annotated[int | None, whole(0, MAX_SEED, "Random seed; default: the preset's.")] = None,
    parallel: Annotated[
        str | None, typer.Option(help="Under torchrun: ddp, fsdp or hsdp (docs/training.md); default: the preset's.")
    ] = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Train: with --preset, fine-tune a model on your own triplets; with a command, one component of phantom-mini.

    Resumes from the last checkpoint.
    """
    if context.invoked_subcommand:
        return
    from phantom_s2v.models.distributed import is_main
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.training import own, recipes

    if preset not in recipes.OWN:
        raise InputError(f"preset must be {', '.join(recipes.OWN)} (got {preset!r})")
    name, recipe = recipes.OWN[preset]
    chosen = read_config(recipe(), config)
    given = {key: value for key, value in (("steps", steps), ("seed", seed), ("parallel", parallel)) if value is not None}
    chosen = replace(chosen, train=replace(chosen.train, **given))
    if print_config:
        say(*json.dumps(asdict(chosen), indent=1).splitlines())
        return
    if latents is None or out is None:
        raise InputError("--latents and --out are needed for training; phantom encode makes the latents")
    made = own.run(chosen, model_folder(model or name), latents, out, Placement(device=device, dtype=dtype))
    if is_main():
        say(json.dumps(made))


def read_config(config: Any, file: Path | None) -> Any:
    """A configuration with the fields of a TOML file. Raises InputError that names an unknown field or one of another type."""
    if file is None:
        return config
    try:
        return typed(type(config), _over(asdict(config), parse_toml(read_text(file))), str(file))
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: {error}") from error


def _over(base: Any, changes: Any) -> Any:
    """`base` with the values of `changes`, table by table."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: _over(base.get(key), value) for key, value in changes.items()}}
