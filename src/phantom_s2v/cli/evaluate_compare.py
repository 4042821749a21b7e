"""phantom evaluate compare, rate, votes: which of several systems is better, by their scores and by people."""

import json
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from phantom_s2v.cli.app import evaluate, say, tell, whole
from phantom_s2v.cli.options import Force, Report
from phantom_s2v.errors import InputError


@evaluate.command("compare")
def evaluate_compare(
    systems: Annotated[
        list[Path], typer.Argument(help="Results of two or more systems: folders of evaluate run, or .jsonl of evaluate score.")
    ],
    out: Report = None,
    force: Force = False,
) -> None:
    """Compare systems on the same cases: paired bootstrap intervals, wins and losses. The last line is JSON."""
    from phantom_s2v.evaluation import compare
    from phantom_s2v.evaluation.reports.comparison import write_comparison
    from phantom_s2v.evaluation.suites.own import read_rows
    from phantom_s2v.files.io import check_outputs

    names = [path.resolve().name if path.is_dir() else path.stem for path in systems]
    if len(set(names)) < len(names):
        names = [f"{name} {number}" for number, name in enumerate(names, 1)]
    if out:
        check_outputs([out], force=force, suffix=".html")
    rows = dict(zip(names, map(read_rows, systems), strict=True))
    comparisons, notes = compare.compare(rows)
    if out:
        write_comparison(out, comparisons, notes, compare.largest_changes(dict(zip(names, systems, strict=True)), rows))
    say(*compare.lines(comparisons), *notes)
    say(json.dumps({"comparisons": compare.as_rows(comparisons), "notes": notes}, ensure_ascii=False))


@evaluate.command("rate")
def evaluate_rate(
    systems: Annotated[
        list[Path], typer.Argument(help="Video folders of two or more systems, with the same file names in each.")
    ],
    suite: Annotated[
        Path | None, typer.Option(help="Folder with cases.jsonl; its prompts and reference images are shown.")
    ] = None,
    votes: Annotated[Path, typer.Option(help="SQLite file for the votes.")] = Path("votes.sqlite"),
    rater: Annotated[list[str] | None, typer.Option(help="Name of a rater, who gets a personal link. Repeat for more.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind to; any other than localhost needs --allow-remote.")] = "127.0.0.1",
    port: Annotated[int, whole(1, 65535, "Port.")] = 8765,
    allow_remote: Annotated[
        bool, typer.Option(help="Allow access from other machines: unencrypted, for anyone with a rater's link.")
    ] = False,
) -> None:
    """Serve a web page for blind pairwise rating of videos.

    Each rater gets a secret link, which stays valid as long as the votes file is kept.
    """
    try:
        import uvicorn

        from phantom_s2v.evaluation.pairs import as_shown, find_pairs
        from phantom_s2v.evaluation.rating import application
        from phantom_s2v.evaluation.votes import links
        from phantom_s2v.files.hosts import is_loopback
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run pip install 'phantom-s2v[web]'") from error
    from phantom_s2v.evaluation.suites.own import read_own
    from phantom_s2v.files.io import check_folder

    if not is_loopback(host) and not allow_remote:
        raise InputError(
            f"--host {host} is reachable from other machines and needs --allow-remote: traffic is not encrypted, and anyone who "
            "has or intercepts a rater's link can see the videos and vote as that rater"
        )

    check_folder(votes.parent)
    descriptions = {
        case.id: (case.prompt, tuple(path for _, path in case.references)) for case in (read_own(suite) if suite else [])
    }
    with TemporaryDirectory() as scratch:
        pairs = as_shown(find_pairs(systems, descriptions), Path(scratch), tell)
        app = application(pairs, votes, host)
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        say(f"{len(pairs)} comparisons (stop with Ctrl-C; votes are saved in {votes}). Secret link of each rater:")
        for name, secret in links(votes, rater or ["rater 1"]).items():
            say(f"{name}: http://{shown}:{port}/rate/{secret}")
        uvicorn.run(app, host=host, port=port, log_level="warning", limit_concurrency=256, server_header=False)


@evaluate.command("votes")
def evaluate_votes(
    votes: Annotated[Path, typer.Argument(help="SQLite votes file of `phantom evaluate rate`.")],
    out: Report = None,
    force: Force = False,
) -> None:
    """Count the votes: wins per system and question, with intervals and inter-rater agreement."""
    try:
        from phantom_s2v.evaluation.pairs import QUESTIONS
        from phantom_s2v.evaluation.votes import results
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; run pip install 'phantom-s2v[web]'") from error

    from phantom_s2v.evaluation.reports.comparison import write_votes
    from phantom_s2v.files.io import check_outputs

    if out:
        check_outputs([out], [votes], force=force, suffix=".html")
    rows = results(votes)
    if out:
        write_votes(out, rows, QUESTIONS)
    for row in rows:
        share = "" if row["second_share"] is None else f"; {row['second']} preferred {row['second_share']:.2f} {row['interval']}"
        agreed = "n/a (no case has two raters, or all votes are equal)" if row["agreement"] is None else row["agreement"]
        say(
            f"{row['question']}: {row['first']} {row['first_wins']}, {row['second']} {row['second_wins']}, equal {row['equal']} "
            f"({row['cases']} cases, {row['raters']} raters){share}; agreement {agreed}"
        )
    say(json.dumps({"questions": rows}, ensure_ascii=False))
