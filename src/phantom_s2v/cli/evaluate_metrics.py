"""phantom evaluate calibrate, self-check: how often the metrics are right, and the thresholds that follow."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phantom_s2v.cli.app import MAX_VIDEOS, by_stage, evaluate, progress, say, tell, whole
from phantom_s2v.cli.evaluate import load_networks
from phantom_s2v.cli.options import Crop, Force, Networks, References, TrainingEmoji, grouped

if TYPE_CHECKING:
    from phantom_s2v.evaluation.run import Asked
    from phantom_s2v.evaluation.score import VideoScore


@evaluate.command("calibrate")
@grouped
def evaluate_calibrate(
    *,
    good: Annotated[Path, typer.Argument(help="Folder of acceptable videos.")],
    bad: Annotated[Path, typer.Argument(help="Folder of unacceptable videos.")],
    reference: References = None,
    prompt: Annotated[str, typer.Option(help="Text prompt of the videos.")] = "",
    networks: Networks,
    crop: Crop = "0,0,1,1",
    out: Annotated[Path, typer.Option(help="Output KPI file, .toml.")] = Path("kpi.toml"),
    force: Force = False,
) -> None:
    """Calibrate KPI thresholds on your own footage, with their error rates."""
    from phantom_s2v.evaluation import calibration
    from phantom_s2v.evaluation.run import Asked, find_videos, name_references, parse_crop
    from phantom_s2v.files.io import check_outputs, write_text

    check_outputs([out], force=force, suffix=".toml")
    box, paths = parse_crop(crop), {"good": find_videos(good), "bad": find_videos(bad)}
    asked = Asked(name_references(reference or []), prompt, load_networks(networks), box)
    scores, unreadable = score_kinds(paths, asked)
    bounds = calibration.calibrate_thresholds(scores["good"], scores["bad"], asked.tools)
    write_text(out, calibration.as_toml(bounds), sealed=True)
    for bound in bounds:
        side = "min" if bound.low else "max"
        say(
            f"{bound.metric:18} {side} {bound.bound:.4g}   rejects {bound.good_refused} of {bound.good} good, accepts "
            f"{bound.bad_passed} of {bound.bad} bad"
        )
    say(json.dumps({"out": str(out), "kpis": calibration.as_rows(bounds), "unreadable": unreadable}, ensure_ascii=False))
    if unreadable:
        raise typer.Exit(3)


def score_kinds(paths: dict[str, list[Path]], asked: "Asked") -> tuple[dict[str, list["VideoScore"]], int]:
    """The scores of the videos of each kind, and how many could not be read."""
    from phantom_s2v.evaluation.run import score_one

    scores: dict[str, list[VideoScore]] = {kind: [] for kind in paths}
    unreadable = 0
    with progress() as bar:
        report = by_stage(bar)
        for kind, files in paths.items():
            for number, path in enumerate(files, 1):
                scored, _ = score_one(path, asked)
                if scored.score:
                    scores[kind].append(scored.score)
                else:
                    unreadable += 1
                    tell(f"skipped: {scored.unreadable}")
                report(kind, number, len(files))
    return scores, unreadable


@evaluate.command("self-check")
def evaluate_self_check(
    videos: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of videos that show faces: faults are planted in them instead of emoji clips. An image NAME.png or .jpg "
            "beside NAME.mp4 is its reference, from another take; else the reference is cut from the first frames and mirrored."
        ),
    ] = None,
    each: Annotated[int, whole(1, MAX_VIDEOS, "Number of clips per fault.")] = 200,
    clean: Annotated[int, whole(1, MAX_VIDEOS, "Number of clips without a fault.")] = 500,
    training: TrainingEmoji = False,
    out: Annotated[Path | None, typer.Option(help="Output report, .html: rates, and clips that were mistaken.")] = None,
    force: Force = False,
) -> None:
    """Measure detection and false-alarm rates of the metrics on clips with planted faults. The last line is JSON."""
    from phantom_s2v.data.synthetic.emoji import default_root, load_store
    from phantom_s2v.data.synthetic.heldout import held_out
    from phantom_s2v.evaluation import footage_check, selfcheck
    from phantom_s2v.evaluation.networks import Wanted, instruments
    from phantom_s2v.evaluation.reports.selfcheck import write_self_check
    from phantom_s2v.evaluation.run import find_videos
    from phantom_s2v.files.io import check_outputs

    if out:
        check_outputs([out], force=force, suffix=".html")
    tools = instruments(Wanted(features="efficientnet-lite0" if videos else "phantom-mini"))
    with progress() as bar:
        report = partial(by_stage(bar), "clips")
        if videos:
            checked = footage_check.run(find_videos(videos), tools, report)
        else:
            tools = replace(tools, faces=None)  # drawn things have none that dlib knows
            checked = selfcheck.run(load_store(default_root()) if training else held_out(), tools, each, clean, report)
    rows = selfcheck.table(checked)
    for fault, row in rows.items():
        (hit, low, high), (alarm, alarm_low, alarm_high) = row["detection"], row["false_alarm"]
        planted, clean_clips = row["clips"]
        say(
            f"{fault:14} found {100 * hit:5.1f}% [{100 * low:.1f}, {100 * high:.1f}]   "
            f"false alarms {100 * alarm:4.1f}% [{100 * alarm_low:.1f}, {100 * alarm_high:.1f}]   "
            f"({planted} planted, {clean_clips} clean)"
        )
    rates = ("detection", "false_alarm")
    if out:
        write_self_check(out, rows, checked.mistakes, tools.features, str(videos) if videos else "clips composed of emoji")
    say(json.dumps({fault: {name: row[name][0] for name in rates} for fault, row in rows.items()}))
