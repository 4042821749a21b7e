"""Triplets of an encoded dataset that no training could use, found before its first step, each with the reason."""

import sys
from pathlib import Path

from phantom_s2v.errors import DataError
from phantom_s2v.files.io import read_json, write_json
from phantom_s2v.geometry import VideoSize
from phantom_s2v.models.distributed import everyone, is_main, rank, world
from phantom_s2v.models.finite import all_finite
from phantom_s2v.training.config import OwnConfig
from phantom_s2v.training.encoded import EncodedStore, Row

NOTED, SHOWN = "data.json", 20  # file of a run's folder; reasons in a sentence
AT_ONCE = 8  # rows in memory


def unusable(store: EncodedStore, content: str, config: OwnConfig, channels: int, out: Path) -> frozenset[str]:
    """Ids of triplets that cannot be used, each named on stderr; what was found is noted in the run's folder, by dataset.

    `content` is the hash of the dataset. Raises DataError where there are some and the config says to stop.
    Processes of torchrun share the reading.
    """
    version = {"version": store.dataset.version, "content": content}
    noted, name = out / NOTED, str(store.path.absolute())
    notes = read_json(noted).get("datasets", {}) if noted.is_file() else {}
    known = notes.get(name, {})
    if known.items() >= version.items():
        bad: dict[str, str] = known["bad"]
    else:
        mine = _look(store, channels)
        bad = {key: reason for part in everyone(mine) for key, reason in part.items()}
        if is_main():
            write_json(noted, {"datasets": {**notes, name: {**version, "bad": bad}}}, sealed=True)
    if bad and config.bad_data == "stop":
        listed = "; ".join(f"{key}: {reason}" for key, reason in sorted(bad.items())[:SHOWN])
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(f"{len(bad)} of {len(store)} triplets cannot be used ({listed}{more}); --bad-data skip leaves them out")
    for key, reason in sorted(bad.items()) if is_main() else ():
        print(f"phantom: skipped: {key}: {reason}", file=sys.stderr)
    return frozenset(bad)


def _look(store: EncodedStore, channels: int) -> dict[str, str]:
    """Reasons by id, of this process's share of the rows."""
    rows = store.sizes()
    places = range(rank(), len(rows), world())
    bad = {}
    for start in range(0, len(places), AT_ONCE):
        for place in places[start : start + AT_ONCE]:
            if reason := _fault(store, place, rows[place], channels):
                bad[rows[place].id] = reason
    return bad


def _fault(store: EncodedStore, place: int, row: Row, channels: int) -> str:
    """Why a row cannot be used; empty where it can."""
    try:
        (tensors,) = store.take([place])
    except DataError as error:
        return f"cannot be read ({error})"
    if missing := {"latents", "text", "subjects", "cross"} - tensors.keys():
        return f"has no {', '.join(sorted(missing))}"
    if odd := [name for name, value in tensors.items() if not all_finite(value)]:
        return f"its {odd[0]} are not finite"
    size = VideoSize(row.frames, row.height, row.width).latent
    got = tuple(tensors["latents"].shape)
    if got != (channels, *size):
        short = "is too short: " if len(got) == 4 and got[1] < size[0] else ""
        return f"{short}its latents have the shape {got}, and {row.frames} frames of {row.width}x{row.height} {(channels, *size)}"
    if row.subjects and len(tensors["subjects"]) != len(tensors.get("references", ())):
        return f"has {len(tensors['subjects'])} references in name and {len(tensors.get('references', ()))} in fact"
    return ""
