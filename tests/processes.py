"""Processes like torchrun's, forked, so that they need not import again; and encoded triplets that no Lance is needed for."""

import multiprocessing
import os
import pickle
import socket
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from phantom_s2v.models.distributed import leave
from phantom_s2v.training.encoded import Row


def _child(rank: int, count: int, port: int, answer: Path, function: Any, given: tuple) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    try:
        answer.write_bytes(pickle.dumps(function(*given)))
        leave()
    except BaseException as error:
        traceback.print_exc()
        answer.write_bytes(pickle.dumps(f"{type(error).__name__}: {error}"))
        os._exit(1)
    os._exit(0)


def in_processes(folder: Path, count: int, function: Any, *given: Any, fails: bool = False, seconds: int = 120) -> list[Any]:
    """What `function(*given)` returns in each of `count` processes that torchrun would start; with `fails` their errors.

    They have to end within so many `seconds`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = [folder / f"answer.{rank}" for rank in range(count)]
    fork = multiprocessing.get_context("fork")
    started = [
        fork.Process(target=_child, args=(rank, count, port, answer, function, given)) for rank, answer in enumerate(answers)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lance, which is imported here and not used there
        for process in started:
            process.start()
    for process in started:
        process.join(seconds)
    hung = [process for process in started if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung
    assert all((process.exitcode != 0) == fails for process in started), [pickle.loads(a.read_bytes()) for a in answers]
    return [pickle.loads(answer.read_bytes()) for answer in answers]


class Held:
    """Encoded triplets in memory, as `EncodedStore` gives them."""

    def __init__(self, rows: list[dict[str, torch.Tensor]], sizes: list[tuple[int, int, int]]) -> None:
        self.rows, self.path, self.origin = rows, Path("held.lance"), dict[str, str]()
        self.shapes, self.dataset = sizes, SimpleNamespace(version=1)

    def __len__(self) -> int:
        return len(self.rows)

    def rights(self) -> dict[str, int]:
        """How many triplets have each license."""
        return {"CC0-1.0": len(self.rows)}

    def sizes(self) -> list[Row]:
        """What columns say of all rows."""
        return [Row(f"clip-{number:02d}", *shape, 1, False, True, 1, False) for number, shape in enumerate(self.shapes)]

    def take(self, rows: list[int]) -> list[dict[str, torch.Tensor]]:
        """Tensors of rows."""
        return [self.rows[row] for row in rows]


def held(channels: int, text: tuple[int, int], image: tuple[int, int] | None, sizes: list[tuple[int, int, int]]) -> Held:
    """Random triplets with one reference each."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for height, width, frames in sizes:
        h, w, time = height // 8, width // 8, (frames - 1) // 4 + 1
        row = {
            "latents": torch.randn(channels, time, h, w, generator=draw),
            "text": torch.randn(*text, generator=draw),
            "references": torch.randn(1, channels, h, w, generator=draw),
            "subjects": torch.zeros(1, dtype=torch.int64),
            "cross": torch.ones(1, dtype=torch.int64),
        }
        rows.append(row | ({"image_tokens": torch.randn(1, *image, generator=draw)} if image else {}))
    return Held(rows, sizes)
