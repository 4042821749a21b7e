"""The application: command groups, the progress bar, and exit codes."""

import codecs
import io
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from phantom_s2v.errors import InputError, PhantomError, StoppedOnRequestError, missing_extra
from phantom_s2v.files.io import REASONS
from phantom_s2v.files.untrusted import printable

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data = typer.Typer(no_args_is_help=True, help="Build and manage training data.")
train = typer.Typer(no_args_is_help=True)
evaluate = typer.Typer(no_args_is_help=True, help="Evaluate models and videos.")
models = typer.Typer(no_args_is_help=True, help="Download models.")
app.add_typer(data, name="data")
app.add_typer(models, name="models")
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")
err = Console(stderr=True)
MAX_VIDEOS, MAX_PROCESSES, MAX_STEPS = 10_000, 1024, 10**9
MAX_SEED = 10**12  # a training multiplies it by a million, within 64 bits
MAX_ROW = 2**63 - 1
MAX_MINUTES = 525_600  # a year
DEFECT = 70  # EX_SOFTWARE of sysexits.h


def whole(low: int, high: int, meaning: str) -> Any:
    """An integer option between `low` and `high`. Raises InputError for any other value, before any work."""

    return _bounded(low, high, f"between {low:,} and {high:,}", meaning)


def real(low: float, high: float, meaning: str) -> Any:
    """An option between `low` and `high` that may have a fraction. Raises InputError for any other value, and for nan."""
    return _bounded(low, high, f"between {low:,g} and {high:,.10g}", meaning)


def _bounded(low: float, high: float, allowed: str, meaning: str) -> Any:
    def check(param: typer.CallbackParam, value: float | None) -> float | None:
        if value is not None and not low <= value <= high:  # nan is not either
            raise InputError(f"{str(param.name).replace('_', '-')} must be {allowed} (got {value})")
        return value

    return typer.Option(help=meaning, callback=check)


def main() -> None:
    """Entry point: errors of the input become one sentence and exit code 2, defects of ours a traceback and 70."""
    write_any_character()
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao"):  # what they say of themselves at each import
        logging.getLogger(name).setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _end)
    try:
        code = app(standalone_mode=False)  # click turns Exit and Ctrl-C into a code
    except PhantomError as error:
        tell(error)
        sys.exit(2)
    except ImportError as error:
        if not (sentence := missing_extra(error)):
            sys.exit(_defect())
        tell(sentence)
        sys.exit(2)
    except BrokenPipeError:  # who reads the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in REASONS:  # nothing to name
            sys.exit(_defect())
        tell(f"{error.filename or 'writing failed'}: {REASONS.get(error.errno or 0, error.strerror)}")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except StoppedOnRequestError as ended:
        sys.exit(ended.code)
    except SystemExit as ended:
        code = ended.code
    except Exception as error:
        if not hasattr(error, "exit_code"):  # click's usage errors have one
            sys.exit(_defect())
        _usage(error)
        sys.exit(2)
    if code in (130, 128 + signal.SIGTERM):
        tell("interrupted (partial files were removed)")
    sys.exit(code if isinstance(code, int) else 0)


def _defect() -> int:
    """Show where a defect of ours was met; the exit code of it, since 1 means that a KPI was missed."""
    traceback.print_exc()
    return DEFECT


def _end(number: int, _: object) -> None:
    """SIGTERM ends a command as Ctrl-C does: files that are being written are removed on the way out."""
    sys.exit(128 + number)


def write_any_character() -> None:
    """Let the output have characters that its encoding lacks (a console of cp1252, names that are not UTF-8): they are escaped
    as in JSON, so that a line of JSON stays one.
    """
    codecs.register_error("json", lambda error: (json.dumps(_failed(error))[1:-1], error.end))  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="json")


def _failed(error: UnicodeError) -> str:
    assert isinstance(error, UnicodeEncodeError)
    return error.object[error.start : error.end]


def _usage(error: Any) -> None:
    """Say what is wrong with the arguments; without any, click shows the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    path = error.ctx.command_path if getattr(error, "ctx", None) else "phantom"
    tell(f"{error.format_message()} (see {path} --help)")


def say(*lines: object) -> None:
    """Print each on one line of stdout. Names, captions and answers in them are others', and command no terminal."""
    for line in lines:
        print(printable(line), flush=True)


def tell(line: object) -> None:
    """Print a notice or an error on one line of stderr, as `say` does."""
    print(f"phantom: {printable(line)}", file=sys.stderr)


def progress(shown: bool = True) -> Progress:
    """A bar with time left, on stderr."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=err,
        disable=not shown,
    )


def by_stage(bar: Progress) -> Callable[[str, int, int], None]:
    """What tells a bar of the stages of a work: stage, done, total."""
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total)
        bar.update(tasks[stage], completed=done)

    return report


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Subject-to-video generation: videos of given subjects from one to four reference images and a text prompt."""
    if show:
        from phantom_s2v import __version__

        say(__version__)
        raise typer.Exit
