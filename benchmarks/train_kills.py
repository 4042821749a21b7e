"""Whether a training that is killed loses or changes anything: SIGKILL at random moments, saves included, and gone on with.

An unbroken run of phantom-mini's preset on random latents writes the loss of every step in all its bits. The same run is then
killed again and again, often while a checkpoint is being written, and started again, each time to go on from
its newest checkpoint; the losses of the steps that follow have to be those of the unbroken run. The last line is one JSON object:
kills; lost, restarts that went on from an earlier step than the newest checkpoint, and damaged checkpoints; and different, of
all steps that were made again or for the first time, those whose loss has other bits.
"""

import json
import multiprocessing
import os
import random
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save

from phantom_s2v.models.distributed import is_main, world
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import model_folder
from phantom_s2v.training import own, recipes
from phantom_s2v.training.checkpoint import saved
from phantom_s2v.training.encoded import EncodedStore
from phantom_s2v.training.guard import encoder_hashes
from phantom_s2v.training.log import Log


def latents(path: Path, folder: Path, count: int = 12) -> None:
    """Write a dataset of random latents of two sizes for the model in `folder`."""
    draw = torch.Generator().manual_seed(0)
    store = EncodedStore.create(path, encoder_hashes(folder))
    rows = []
    for number in range(count):
        side, frames = ((32, 5), (48, 1))[number % 2]
        time_, h = (frames - 1) // 4 + 1, side // 8
        tensors = {
            "latents": torch.randn(48, time_, h, h, generator=draw),
            "text": torch.randn(6, 384, generator=draw),
            "references": torch.randn(1, 48, h, h, generator=draw),
            "image_tokens": torch.randn(1, 16, 192, generator=draw),
            "subjects": torch.zeros(1, dtype=torch.int64),
            "cross": torch.ones(1, dtype=torch.int64),
        }
        row = {"id": f"clip-{number:02d}", "height": side, "width": side, "frames": frames, "subjects": 1, "caption": "a"}
        row |= {"in_pair": False, "cross_pair": True, "repeats": 1, "regularization": False, "license": ""}
        rows.append({**row, "tensors": save(tensors)})
    store.write(rows)


def learn(folder: Path, store: Path, out: Path, steps: int, save_steps: int) -> None:
    """Train to `steps`; every loss goes, in all its bits, into a line of losses.txt that is on the disk before the next step."""
    write = Log.write
    losses = (out.parent / f"{out.name}.losses.txt").open("a")

    def note(log: Log, step: int, row: dict[str, float]) -> None:
        if "loss" in row and is_main():
            losses.write(f"{step + 1} {row['loss'].hex()}\n")
            losses.flush()
        write(log, step, row)

    Log.write = note  # pyright: ignore[reportAttributeAccessIssue]
    config = recipes.own_mini()
    train = replace(config.train, steps=steps, precision="float32", log_steps=1, save_steps=save_steps, decay_share=0.0)
    train = replace(train, warmup=5, spike_factor=5.0, parallel="fsdp" if world() > 1 else "ddp")
    own.run(replace(config, train=train, validation=0.0), folder, {store: 0}, out, Placement(device="cpu"))


def losses_of(out: Path) -> list[tuple[int, str]]:
    """(step, loss) of every step that was made, in the order of making; a line that the kill has cut is none."""
    file = out.parent / f"{out.name}.losses.txt"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines if line.endswith("\n")]


def start(processes: int, work: Callable[..., None], *given: Any) -> list[Any]:
    """Processes as torchrun starts them, forked, so that they need not import again (Lance is not in use here)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    fork, started = multiprocessing.get_context("fork"), list[Any]()
    for rank in range(processes):
        if processes > 1:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ |= {name: str(value) for name, value in places.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lance warns at every fork
            started.append(fork.Process(target=work, args=given))
            started[-1].start()
    return started


def quietly(work: Callable[..., None], log: Path, *given: Any) -> None:
    """Do it with what it prints in a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    work(*given)
    os._exit(0)


def kill_once(started: list[Any], out: Path, rng: random.Random, ready: int) -> None:
    """Kill a training at a random moment: after some steps, while a checkpoint is being written, or soon after one was."""
    before = set(saved(out / "checkpoints"))

    def comes(there: Callable[[], object], pause: float) -> None:
        ends = time.monotonic() + 60
        while not there() and time.monotonic() < ends and all(process.is_alive() for process in started):
            time.sleep(pause)

    comes(lambda: len(losses_of(out)) > ready + rng.randint(0, 2), 0.005)
    moment = rng.choice(("steps", "save", "saved"))
    if moment == "save":
        comes(lambda: list(out.glob("checkpoints/.step-*.partial")), 0.0005)
    elif moment == "saved":
        comes(lambda: set(saved(out / "checkpoints")) - before, 0.002)
    time.sleep(rng.random() * 0.05)
    if not all(process.is_alive() for process in started):
        raise RuntimeError((out.parent / "said.txt").read_text()[-3000:])
    for process in started:
        process.kill()
    for process in started:
        process.join()


def main(
    kills: Annotated[int, typer.Option(help="Number of kills.")] = 40,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 3,
    after: Annotated[int, typer.Option(help="Steps after the last kill that are compared with those of the unbroken run.")] = 50,
    model: Annotated[str, typer.Option(help="Model of phantom-mini's kind.")] = "phantom-mini",
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    processes: Annotated[int, typer.Option(help="Processes, which share the weights (FSDP).")] = 1,
) -> None:
    """Kill, go on, compare; exit code 1 if anything is lost or different."""
    folder, rng, lost, during, newest = model_folder(model), random.Random(seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        out, whole, said = Path(scratch) / "killed", Path(scratch) / "whole", Path(scratch) / "said.txt"
        store = Path(scratch) / "l.lance"
        done(start(1, quietly, latents, said, store, folder), said)
        for kill in range(1, kills + 1):
            made = losses_of(out)
            kill_once(start(processes, quietly, learn, said, folder, store, out, 10**6, save_steps), out, rng, len(made))
            during += bool(list(out.glob("checkpoints/.step-*.partial")))
            again = losses_of(out)[len(made) :]
            lost += bool(again) and again[0][0] <= newest
            newest = max((int(path.name[5:]) for path in saved(out / "checkpoints")), default=0)
            print(f"kill {kill}: steps {again[0][0]} to {again[-1][0]}, checkpoint {newest}", flush=True)
        for place in (out, whole):
            done(start(processes, quietly, learn, said, folder, store, place, newest + after, save_steps), said)
        expected, compared = dict(losses_of(whole)), losses_of(out)
        different = sum(expected.get(step) != loss for step, loss in compared)
        print(f"{during} of the kills left an unfinished checkpoint; {len(compared)} losses were compared")
        damaged = said.read_text().count("is damaged")
        print(f"{damaged} checkpoints were damaged")
    print(json.dumps({"kills": kills, "lost": lost + damaged, "different": different}))
    raise typer.Exit(1 if lost or damaged or different else 0)


def done(started: list[Any], said: Path) -> None:
    """Wait for the end of processes. Raises RuntimeError where one fails."""
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise RuntimeError(said.read_text()[-3000:])


if __name__ == "__main__":
    typer.run(main)
