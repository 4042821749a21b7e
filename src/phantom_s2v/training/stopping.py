"""Ctrl-C and SIGTERM in a training: the step that runs is finished and saved before the process ends."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from phantom_s2v.models.distributed import is_main, summed, world

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def shared(value: float, device: torch.device) -> float:
    """The mean of a number over torchrun's processes, the same in all of them; one that is alone waits for no device."""
    return value if world() < 2 else float(summed([torch.tensor([value], device=device)])[0]) / world()


@contextmanager
def stopping(device: torch.device) -> Iterator[Callable[[], bool]]:
    """A function that says, after a step, whether a signal has come to any of torchrun's processes; all of them have to ask.

    A second signal ends the process at once. In a thread that is not the main one, where signals cannot be caught, it says no.
    """
    caught: list[int] = []

    def remember(number: int, _: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    def asked() -> bool:
        return bool(shared(float(len(caught)), device))

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(step: int) -> None:
    """End a training whose state of `step` is saved. Raises KeyboardInterrupt."""
    if is_main():
        print(f"phantom: stopped after step {step}, which is saved; the same command goes on from there", file=sys.stderr)
    raise KeyboardInterrupt


def leave_signals_to_the_first(_: int) -> None:
    """For processes that compose batches: signals reach them too, and the training still needs them until it has saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
