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


@evaluate.command("score")
def evaluate_score(
    videos: Annotated[Path, typer.Argument(help="A video, or a folder of them.")],
    reference: Annotated[list[str] | None, typer.Option(help="[NAME=]PATH of a picture, one for each subject.")] = None,
    prompt: Annotated[str, typer.Option(help="What was asked for; sides that it gives subjects are checked.")] = "",
    features: Annotated[
        str, typer.Option(help="By what likeness is measured: efficientnet-lite0, phantom-mini.")
    ] = "efficientnet-lite0",
    crop: Annotated[str, typer.Option(help="LEFT,TOP,RIGHT,BOTTOM in shares: the part of the frames that counts.")] = "0,0,1,1",
    kpi: Annotated[Path | None, typer.Option(help="TOML of thresholds; exit code 1 where one is missed.")] = None,
    out: Annotated[Path | None, typer.Option(help="Page to write, .html; scores go beside it as .jsonl.")] = None,
) -> None:
    """Say whether each subject is there, once, in its place and not pasted, and whether the video is sound.

    The last line is one JSON object. Exit codes: 1 a KPI is missed, 2 bad input, 3 some videos could not be read.
    """
    from phantom_s2v.backends import FEATURES
    from phantom_s2v.evaluation.kpi import read_kpis
    from phantom_s2v.evaluation.run import Asked, parse_crop, read_references, score_all

    if features not in FEATURES:
        raise InputError(f"features is {features!r}; it can be {' or '.join(FEATURES)}")
    kpis, box = read_kpis(kpi) if kpi else [], parse_crop(crop)
    asked = Asked(read_references(reference or []), prompt, features, FEATURES[features](), box, kpis)
    with progress() as bar:
        task = bar.add_task("videos", total=None)
        found = score_all(videos, asked, out, lambda done, total: bar.update(task, completed=done, total=total))
    for line in found.lines:
        print(line)
    print(json.dumps(found.summary))
    if found.missed:
        raise typer.Exit(1)
    if found.unreadable:
        raise typer.Exit(3)


@evaluate.command("self-check")
def evaluate_self_check(
    each: Annotated[int, typer.Option(help="Clips with each fault.")] = 200,
    clean: Annotated[int, typer.Option(help="Clips without a fault.")] = 500,
    training: Annotated[bool, typer.Option(help="Of the training emoji, on which thresholds were set.")] = False,
) -> None:
    """Plant faults in clips of held-out emoji and say how many are found, and how many false alarms clean clips raise."""
    from phantom_s2v.backends import embed_mini
    from phantom_s2v.data.emoji import default_root, load_store
    from phantom_s2v.data.heldout import held_out
    from phantom_s2v.evaluation import selfcheck
    from phantom_s2v.evaluation.score import LIMITS

    if min(each, clean) < 1:
        raise InputError(f"each is {each} and clean is {clean}; both can be 1 or more")
    sprites = load_store(default_root()) if training else held_out()
    with progress() as bar:
        task = bar.add_task("clips", total=None)
        found = selfcheck.run(
            sprites,
            embed_mini,
            LIMITS["phantom-mini"],
            each,
            clean,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    rows = selfcheck.table(found, LIMITS["phantom-mini"])
    for fault, row in rows.items():
        (hit, low, high), (alarm, least, most) = row["detection"], row["false_alarm"]
        print(
            f"{fault:14} found {100 * hit:5.1f}% [{100 * low:.1f}, {100 * high:.1f}]   "
            f"false alarms {100 * alarm:4.1f}% [{100 * least:.1f}, {100 * most:.1f}]"
        )
    print(json.dumps({fault: {name: values[0] for name, values in row.items()} for fault, row in rows.items()}))
