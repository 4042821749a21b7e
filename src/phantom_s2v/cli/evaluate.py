"""phantom evaluate."""

import json
from pathlib import Path
from typing import Annotated

import typer

from phantom_s2v.cli.app import evaluate, progress
from phantom_s2v.errors import InputError


@evaluate.command("run")
def evaluate_run(
    suite: Annotated[str, typer.Argument(help="emoji: 100 held-out subjects.")],
    model: Annotated[str, typer.Option(help="Name or folder of a model.")] = "phantom-mini",
    out: Annotated[Path, typer.Option(help="Folder of the results; a run goes on where it was.")] = Path("outputs/emoji"),
    limit: Annotated[int | None, typer.Option(help="Only the first so many subjects.")] = None,
) -> None:
    """Make and judge the videos of a suite; the last line is one JSON object."""
    if suite != "emoji":
        raise InputError(f"suite is {suite!r}; legal is emoji")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it can be 1 or more")
    from phantom_s2v.evaluation.report import table
    from phantom_s2v.evaluation.suites import run_emoji
    from phantom_s2v.generate import load_models
    from phantom_s2v.presets import model_folder

    models = load_models(model_folder(model))
    with progress() as bar:
        task = bar.add_task("videos", total=None)
        figures = run_emoji(models, out, limit, lambda done, total: bar.update(task, completed=done, total=total))
    print(table(figures))
    print(json.dumps(figures | {"model": models.preset.name, "weights": models.hash}))


@evaluate.command("autoencoder")
def evaluate_autoencoder(model: Annotated[str, typer.Option(help="Name or folder of a model.")] = "phantom-mini") -> None:
    """PSNR of held-out clips on textured grounds through the autoencoder; the last line is one JSON object."""
    from phantom_s2v.evaluation.metrics import bootstrap
    from phantom_s2v.evaluation.suites import autoencoder_psnr, held_out
    from phantom_s2v.generate import load_models
    from phantom_s2v.presets import model_folder

    values = autoencoder_psnr(load_models(model_folder(model)), held_out())
    print(json.dumps({name: [round(v, 3) for v in bootstrap(each)] for name, each in values.items()}))
