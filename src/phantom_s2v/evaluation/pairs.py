"""What a rating asks: questions on pairs of videos, one case by two systems, in each rater's own order."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from phantom_s2v.data.clips import store_video
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.run import SUFFIXES
from phantom_s2v.files.hashes import content_hash
from phantom_s2v.files.reuse import origin_hash
from phantom_s2v.media.videos import Video

QUESTIONS = {
    "better": "Which video is better as a whole?",
    "face": "In which is the face more that of the reference?",
    "expression": "In which are expression and pose more natural?",
    "clothes": "In which are clothes, colors and shape more those of the reference?",
    "logo": "In which are logo and lettering more those of the reference?",
}
NOT_SHOWN = "not shown"
CHOICES = ("left", "right", "equal", NOT_SHOWN)


@dataclass(frozen=True)
class Pair:
    """Two videos of one case, by system name, with the prompt and the images that they were to show."""

    case: str
    first: str
    second: str
    videos: tuple[Path, Path]
    prompt: str = ""
    references: tuple[Path, ...] = ()

    def sides(self, rater: str) -> tuple[int, int]:
        """Which of the two is on the left and which on the right for a rater."""
        bit = hashlib.sha256(f"{rater}\0{self.case}\0{self.first}\0{self.second}".encode()).digest()[0] & 1
        return (1, 0) if bit else (0, 1)

    @property
    def content(self) -> str:
        """Hash of what a rater sees: both videos, the references and the prompt."""
        seen = [[content_hash(path) for path in some] for some in (self.videos, self.references)]
        return origin_hash({"seen": seen, "prompt": self.prompt})


def find_pairs(folders: Sequence[Path], descriptions: dict[str, tuple[str, tuple[Path, ...]]]) -> list[Pair]:
    """All pairs of systems on every case that both have; `descriptions` has prompt and references by case. Raises InputError."""
    systems: dict[str, dict[str, Path]] = {}
    for folder in folders:
        name = _system(folder)
        if name in systems or name in CHOICES:
            why = "a second system of this name" if name in systems else "the name of an answer"
            raise InputError(f"{folder} is {why}, {name}, so votes would be ambiguous; rename the folder")
        systems[name] = _videos(folder)
    if len(systems) < 2:
        raise InputError(f"at least two folders with different names are needed (got {len(systems)})")
    pairs = []
    for (first, one), (second, other) in combinations(systems.items(), 2):
        shared = [case for case in one if case in other]
        pairs += [Pair(c, first, second, (one[c], other[c]), *descriptions.get(c, ("", ()))) for c in shared]
    if not pairs:
        raise InputError(f"{' and '.join(systems)} have no videos with the same name")
    return pairs


def as_shown(pairs: Sequence[Pair], scratch: Path, notify: Callable[[str], None]) -> list[Pair]:
    """The pairs with videos that every browser shows as we read them: others are converted into `scratch`, which is `notify`.

    Pairs with a video that cannot be read are named and left out. Raises InputError where none is left.
    """
    ready: dict[Path, Path | None] = {}
    for path in dict.fromkeys(path for pair in pairs for path in pair.videos):
        try:
            ready[path] = path if Video(path).facts.playable else scratch / f"{len(ready)}.mp4"
            if ready[path] != path:
                (scratch / f"{len(ready) - 1}.mp4").write_bytes(store_video(path, notify).video)
        except InputError as error:
            ready[path] = None
            notify(f"skipped: {error}")
    kept = [
        replace(pair, videos=(first, second))
        for pair in pairs
        if (first := ready[pair.videos[0]]) and (second := ready[pair.videos[1]])
    ]
    if not kept:
        raise InputError("no pair has two readable videos")
    return kept


def _system(folder: Path) -> str:
    return folder.resolve().parent.name if folder.name == "videos" else folder.resolve().name


def _videos(folder: Path) -> dict[str, Path]:
    place, paths = folder / "videos" if (folder / "videos").is_dir() else folder, dict[str, Path]()
    for path in sorted(place.glob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and paths.setdefault(path.stem, path) != path:
            raise InputError(
                f"{place} contains two videos of case {path.stem}: {paths[path.stem].name} and {path.name}; remove one"
            )
    return paths


def order(pairs: Sequence[Pair], rater: str) -> list[int]:
    """The pairs in a rater's own order, so that tiredness does not fall on the same cases."""
    seed = int.from_bytes(hashlib.sha256(rater.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).permutation(len(pairs)).tolist()
