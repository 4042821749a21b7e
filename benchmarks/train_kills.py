"""Whether a training that is killed loses or changes anything: SIGKILL at random moments, saves included, and gone on with.

An unbroken run of phantom-mini's preset on random latents writes the loss of every step in all its bits. The same run is then
killed again and again, about half of the times while a checkpoint is being written, and started again, each time to go on from
its newest checkpoint; the losses of the steps that follow have to be those of the unbroken run. The last line is one JSON object:
kills; lost, restarts that went on from an earlier step than that of a checkpoint that was whole at the kill; and different, of
all steps that were made again or for the first time, those whose loss has other bits.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

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

AFTER = 50  # steps after the last kill that are compared with the unbroken run's, at least


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
        }
        row = {"id": f"clip-{number:02d}", "height": side, "width": side, "frames": frames, "subjects": 1, "caption": "a"}
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

    Log.write = note
    config = recipes.own_mini()
    train = replace(config.train, steps=steps, precision="float32", log_steps=1, save_steps=save_steps, decay_share=0.0)
    train = replace(train, warmup=5, spike_factor=5.0, parallel="fsdp" if world() > 1 else "ddp")
    own.run(replace(config, train=train, validation=0.0), folder, store, out, Placement(device="cpu"))


def losses_of(out: Path) -> list[tuple[int, str]]:
    """(step, loss) of every step that was made, in the order of making; a line that the kill has cut is none."""
    file = out.parent / f"{out.name}.losses.txt"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines if line.endswith("\n")]


def kill_once(command: list[str], out: Path, rng: random.Random, ready: int) -> bool:
    """Start the training, and kill it at a random moment after its first new steps; whether it lived until then.

    Every second time the moment is in a save: while the folder of an unfinished checkpoint is there.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(losses_of(out)) <= ready + rng.randint(0, 3) and process.poll() is None:
        time.sleep(0.005)
    if rng.random() < 0.5:
        ends = time.monotonic() + 5
        while time.monotonic() < ends and not list(out.glob("checkpoints/.step-*.partial")) and process.poll() is None:
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.02)
    else:
        time.sleep(rng.random() * 0.5)
    lived = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    said = process.communicate()[1]
    if not lived and process.returncode != 0:
        raise RuntimeError(said[-2000:])
    return lived


def main(
    kills: Annotated[int, typer.Option(help="Number of kills.")] = 40,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 3,
    model: Annotated[str, typer.Option(help="Model of phantom-mini's kind.")] = "phantom-mini",
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    processes: Annotated[int, typer.Option(help="Processes of torchrun, which share the weights (FSDP).")] = 1,
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
    steps: Annotated[int, typer.Option(hidden=True)] = 10**6,
) -> None:
    """Kill, go on, compare; exit code 1 if anything is lost or different."""
    folder = model_folder(model)
    if child:
        learn(folder, Path(child).parent / "l.lance", Path(child), steps, save_steps)
        return
    rng, killed, lost, during, newest = random.Random(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        out, whole = Path(scratch) / "killed", Path(scratch) / "whole"
        latents(Path(scratch) / "l.lance", folder)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
        start = [sys.executable, *torchrun, __file__, "--model", model, "--save-steps", str(save_steps), "--child"]
        while killed < kills:
            made = losses_of(out)
            killed += kill_once([*start, str(out)], out, rng, len(made))
            during += bool(list(out.glob("checkpoints/.step-*.partial")))
            there = max((int(path.name[5:]) for path in saved(out / "checkpoints")), default=0)
            again = losses_of(out)[len(made) :]
            if again and again[0][0] <= newest:
                lost += 1
            newest = there
            print(f"kill {killed}: at step {again[-1][0] if again else '-'}, checkpoint {there}", flush=True)
        last = newest + AFTER
        for place in (out, whole):
            subprocess.run([*start, str(place), "--steps", str(last)], check=True, stdout=subprocess.DEVNULL)
        expected = dict(losses_of(whole))
        different = sum(expected[step] != loss for step, loss in losses_of(out))
    os.sync()
    print(f"{during} of the kills left an unfinished checkpoint; {len(expected)} steps were compared")
    result = {"kills": killed, "lost": lost, "different": different}
    print(json.dumps(result))
    raise typer.Exit(1 if lost or different else 0)


if __name__ == "__main__":
    typer.run(main)
