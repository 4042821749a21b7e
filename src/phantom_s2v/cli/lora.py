"""phantom lora: LoRA files into another spelling, and into the weights of a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from phantom_s2v.cli.app import app, say
from phantom_s2v.cli.options import DType, Force
from phantom_s2v.errors import InputError

lora = typer.Typer(no_args_is_help=True, help="Convert LoRA files, and merge them into a model.")
app.add_typer(lora, name="lora")


@lora.command("convert")
def lora_convert(
    file: Annotated[Path, typer.Argument(help="LoRA file, .safetensors, of any trainer.")],
    out: Annotated[Path, typer.Option(help="Output file, .safetensors.")],
    to: Annotated[str, typer.Option(help="native (names of the released code with alpha), comfyui or diffusers.")] = "native",
    model: Annotated[str, typer.Option(help="Model that the LoRA is of: name or folder.")] = "phantom-wan-1.3b",
    force: Force = False,
) -> None:
    """Convert a LoRA file to the names of another program, at the same strength."""
    from phantom_s2v.files.io import check_outputs
    from phantom_s2v.models.registry import load_preset, model_folder, video_model
    from phantom_s2v.models.wan.lora_files import SPELLINGS, convert_lora
    from phantom_s2v.models.weights import check_part

    if to not in SPELLINGS:
        raise InputError(f"to must be {', '.join(SPELLINGS[:-1])} or {SPELLINGS[-1]} (got {to!r})")
    check_outputs([out], [file], force, ".safetensors")
    folder = model_folder(model)
    empty, _ = check_part(video_model(folder).parts()["transformer"], folder / "transformer")
    layers = convert_lora(file, empty, load_preset(folder).name, to, out)
    say(json.dumps({"out": str(out), "layers": layers}))


@lora.command("merge")
def lora_merge(
    files: Annotated[list[str], typer.Argument(help="LoRA files, FILE or FILE=SCALE.")],
    out: Annotated[Path, typer.Option(help="Output model folder, which must not exist.")],
    model: Annotated[str, typer.Option(help="Model to merge into: name or folder.")] = "phantom-wan-1.3b",
    dtype: DType = "auto",
) -> None:
    """Merge LoRA files into the weights of a model."""
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.models.wan.lora_files import merge_loras
    from phantom_s2v.pipeline.batch import parse_loras
    from phantom_s2v.pipeline.loading import check_placed, load_models, no_bars

    if out.exists():
        raise InputError(f"{out} exists; choose another folder")
    folder, loras = model_folder(model), parse_loras(files)
    check_placed(folder, Placement(device="cpu", loras=loras))
    with no_bars():
        merge_loras(load_models(folder, Placement(device="cpu", dtype=dtype)), loras, out)
    say(json.dumps({"out": str(out), "merged": len(loras)}))
