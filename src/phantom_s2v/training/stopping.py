"""What is asked of a training while it runs: by Ctrl-C and SIGTERM, by files in its folder, and by its clock."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phantom_s2v.errors import StoppedOnRequestError
from phantom_s2v.models.distributed import agreed, is_main
from phantom_s2v.training.config import TrainConfig

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAVE, SAVE_QUIT = "save", "save_quit"  # files in the folder of a run
INTERRUPTED = 130  # exit code after a signal
AGAIN = "the same command goes on from there"


@dataclass(frozen=True)
class Orders:
    """What is to be done after a step, the same in all of torchrun's processes."""

    spent: float  # seconds since the start
    save: bool
    quit: bool  # after a save, by a signal
    validate: bool
    over: bool  # the run's minutes have passed, or a file asks for its end


class Desk:
    """Where orders come in. The first process has the clock and looks for files; signals may reach any."""

    def __init__(self, config: TrainConfig, out: Path) -> None:
        self.config, self.out, self.signals = config, out, list[int]()
        self.began = self.saved = self.validated = time.monotonic()

    def orders(self, step: int) -> Orders:
        """Orders for the end of a step (from 0). All processes have to ask."""
        config, now = self.config, time.monotonic()
        spent, asked, ended = now - self.began, bool(self.signals), False
        save = now - self.saved > config.save_minutes * 60 or bool(config.save_steps and (step + 1) % config.save_steps == 0)
        if is_main():
            save |= self._taken(SAVE)
            ended = self._taken(SAVE_QUIT)
        validate = now - self.validated > config.validate_minutes * 60
        validate |= bool(config.validate_steps and (step + 1) % config.validate_steps == 0)
        over = bool(config.minutes) and spent > config.minutes * 60
        mine = [spent, save, validate, over, ended] if is_main() else [0.0, False, False, False, False]
        spent, *rest = agreed([float(value) for value in (*mine, asked)])
        save, validate, over, ended, asked = map(bool, rest)
        last = over or step + 1 == config.steps
        if ended and not last and is_main():
            print(f"phantom: {SAVE_QUIT}: the run ends after step {step + 1}, which is saved; {AGAIN}", file=sys.stderr)
        return Orders(spent, save or asked or ended or last, asked and not last, validate or last, over or ended)

    def done(self, orders: Orders) -> None:
        """Note when orders were carried out."""
        if orders.save:
            self.saved = time.monotonic()
        if orders.validate:
            self.validated = time.monotonic()

    def _taken(self, name: str) -> bool:
        """Whether there was a file of this name; it is removed."""
        try:
            (self.out / name).unlink()
        except OSError:
            return False
        return True


@contextmanager
def stopping(desk: Desk) -> Iterator[None]:
    """Within it, Ctrl-C and SIGTERM are orders: the step that runs is finished and saved. A second one ends the process at once.

    In a thread that is not the main one, where signals cannot be caught, there are none.
    """

    def remember(number: int, _: object) -> None:
        if desk.signals:
            raise KeyboardInterrupt
        desk.signals.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(step: int) -> None:
    """End a training that a signal stopped and whose state of `step` is saved. Raises StoppedOnRequestError."""
    if is_main():
        print(f"phantom: stopped after step {step}, which is saved; {AGAIN}", file=sys.stderr)
    raise StoppedOnRequestError(INTERRUPTED)


def leave_signals_to_the_first(_: int) -> None:
    """For processes that compose batches: signals reach them too, and the training still needs them until it has saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
