"""Suites of cases: a folder of one's own, OpenS2V's benchmark, and references made hard. Make the videos, score them, sum up.

A folder of one's own holds cases.jsonl, an object on each line: "id" (the name of its video), "prompt", "reference" (a list of
"[NAME=]PATH", below the folder), and whatever else `phantom generate --requests` takes, such as "seed". OpenS2V's JSON maps an id
to prompt, img_paths (below the folder of the file) and class_label.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.instruments import Faces, Instruments
from phantom_s2v.evaluation.kpi import Kpi
from phantom_s2v.evaluation.metrics.measures import bootstrap
from phantom_s2v.evaluation.run import Asked, SuiteResult, score_all
from phantom_s2v.evaluation.suites.nexus import GME, NATURAL, NEXUS, gme_score, natural_score, nexus_score
from phantom_s2v.files.hashes import content_hash
from phantom_s2v.files.io import check_outputs, json_items, ours, read_json, text_lines, write_json
from phantom_s2v.files.untrusted import is_file_name, parse_json, typed
from phantom_s2v.media import images
from phantom_s2v.media.videos import Video
from phantom_s2v.pipeline.request import split_reference

# OpenS2V's result files, those under names of our own, and what we wrote
COLUMNS, WRITTEN = ("motionscore", "aesthetic_score", "facesim", NEXUS, NATURAL, GME), "written.json"
FILES = ("first_frame", "background", "segmenter")  # options of a case that name files
OPENS2V_FRAMES = 32  # that OpenS2V looks at for faces and aesthetics
OPENS2V_FACES = ("singlehuman", "singleface", "faceobj", "humanobj")  # its cases with a face
OPENS2V_PEOPLE = ("man", "woman", "crop_man", "crop_woman")  # its folders of images with a face


@dataclass(frozen=True)
class Case:
    """One video to make, and what it is held against: its references, or others where those were made hard."""

    id: str
    prompt: str
    references: tuple[tuple[str, Path], ...]  # name and image
    against: tuple[tuple[str, Path], ...] = ()
    kind: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # of phantom generate, such as seed and size

    @property
    def request(self) -> dict[str, Any]:
        """The options of `phantom generate` that make its video."""
        return {**self.options, "prompt": self.prompt, "reference": [(name, str(path)) for name, path in self.references]}


@dataclass(frozen=True)
class _Line:
    """A line of cases.jsonl: what every one has, and the options of `phantom generate --requests`."""

    id: str
    prompt: str
    reference: tuple[str, ...] = ()
    size: str | None = None
    seed: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    solver: str | None = None
    image_guidance_scale: float | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    first_frame: str | None = None
    background: str | None = None
    segmenter: str | None = None
    untrained_size: bool | None = None
    cutout: bool | None = None
    several_views: bool | None = None
    released_behavior: bool | None = None


@dataclass(frozen=True)
class _Entry:
    """What we read of a case of OpenS2V."""

    prompt: str
    img_paths: tuple[str, ...]
    class_label: tuple[str, ...] | None = None


def read_own(folder: Path) -> list[Case]:
    """The cases of a folder with cases.jsonl. Raises InputError for a line that is none, or names what is not below it."""
    file = folder / "cases.jsonl"
    if not file.is_file():
        raise InputError(f"suite must be emoji, opens2v, robustness or a folder with cases.jsonl (got {folder})")
    cases = []
    for number, line in enumerate(text_lines(file), 1):
        if not line.strip():
            continue
        try:
            cases.append(_own_case(parse_json(line), folder))
        except (ValueError, InputError) as error:
            raise InputError(
                f"{file.name}, line {number}, is not a case ({error}); it must have id, prompt and reference"
            ) from error
    return checked(cases, file)


def _own_case(entry: Any, folder: Path) -> Case:
    """The case of a line. Raises ValueError or InputError where it is none."""
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    if "out" in entry:
        raise ValueError("out is not allowed: the id names the video")
    line = typed(_Line, entry, "the line")
    options = {name: value for name, value in entry.items() if name not in ("id", "prompt", "reference")}
    for name in FILES:
        if (value := options.get(name)) is not None:
            if not isinstance(value, str) or not value or not is_file_name(value):
                raise ValueError(f"{name} is not a file name")
            options[name] = str(below(folder, value))
    named = [split_reference(text, i) for i, text in enumerate(line.reference)]
    return Case(line.id, line.prompt, tuple((subject, below(folder, path)) for subject, path in named), options=options)


def _known(values: dict[str, Any], kind: type) -> dict[str, Any]:
    """The values of an object that are fields of a dataclass."""
    return {k: v for k, v in values.items() if k in {each.name for each in fields(kind)}}


def read_opens2v(file: Path) -> tuple[list[Case], list[str]]:
    """The cases of one of OpenS2V-Eval's JSON files, in its order, and a line for each that is left out as an image is missing.

    Its archive of images is often unpacked in part. Raises InputError where the file is none, or no case has its images.
    """
    cases = []
    for name, row in json_items(file):
        try:
            entry = typed(_Entry, _known(row, _Entry) if isinstance(row, dict) else row)
        except ValueError as error:
            raise InputError(
                f"{file}, {name!r}: {error}; an OpenS2V-Eval case must have prompt, img_paths and class_label"
            ) from error
        paths, labels = entry.img_paths, entry.class_label or ()
        named = [labels[i].lower() if i < len(labels) else f"subject {i + 1}" for i in range(len(paths))]
        named = [f"{n} {i + 1}" if named.count(n) > 1 else n for i, n in enumerate(named)]
        pairs = tuple((subject, below(file.parent, path)) for subject, path in zip(named, paths, strict=True))
        cases.append(Case(name, entry.prompt, pairs, kind=name.rsplit("_", 1)[0]))
    lost = {case.id: [path for _, path in case.references if not path.exists()] for case in cases}
    missing = [f"{name} is left out: {' and '.join(map(str, paths))} is missing" for name, paths in lost.items() if paths]
    if cases and len(missing) == len(cases):
        raise InputError(f"the images of all {len(cases)} cases of {file.name} are missing; {missing[0]}")
    return checked([case for case in cases if not lost[case.id]], file), missing


def below(folder: Path, path: str) -> Path:
    """A path of a suite's file. Raises InputError where it would leave the suite's folder."""
    try:
        inside = (folder / path).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # no name of a file, or links that go round
        inside = False
    if not inside:
        raise InputError(f"{path} is not inside {folder.name}; images of a suite must be in its folder")
    return folder / path


def checked(cases: list[Case], file: Path) -> list[Case]:
    """The cases, where every id can name a video, none comes twice, and every image can be read. Raises InputError."""
    if not cases:
        raise InputError(f"{file.name} contains no cases")
    seen: set[str] = set()
    for case in cases:
        if not case.id or Path(case.id).name != case.id or case.id.startswith(".") or case.id in seen:
            raise InputError(f"case ids must be unique file names without a folder (got {case.id!r} in {file.name})")
        seen.add(case.id)
    for path in dict.fromkeys(path for case in cases for _, path in (*case.references, *case.against)):
        images.read_image(path)
    return cases


def run_suite(
    cases: Sequence[Case],
    videos: Path,
    make: Callable[[Case, Path], None] | None,
    tools: Instruments,
    kpis: list[Kpi],
    out: Path,
    report: Callable[[str, int, int], None],
) -> SuiteResult:
    """Let `make` see to every video, score all, write `out`/scores.html and .jsonl, and sum up by kind of case.

    Without `make`, a video that is missing counts as unreadable. The control is the similarity to the next case's reference.
    """
    check_outputs([out / "scores.html", out / "scores.jsonl"], force=True)
    for number, case in enumerate(cases, 1):
        if make:
            make(case, videos / f"{case.id}.mp4")
        report("videos", number, len(cases))
    shown = [case.against or case.references for case in cases]
    todo = []
    for case, own, other in zip(cases, shown, [*shown[1:], *shown[:1]], strict=True):
        stranger = other[0][1] if other and own and other[0][1] != own[0][1] else None
        label = {"id": case.id, "kind": case.kind}
        todo.append((videos / f"{case.id}.mp4", Asked(list(own), case.prompt, tools, kpis=kpis, stranger=stranger, label=label)))
    result = score_all(todo, out / "scores.html", lambda done, total: report("scores", done, total))
    result.summary["by_kind"] = by_kind(read_rows(out))
    return result


def read_rows(place: Path) -> list[dict[str, Any]]:
    """The rows of a run's folder, or of a .jsonl of scores. Raises InputError where there are none."""
    file = place / "scores.jsonl" if place.is_dir() else place
    rows = []
    for number, line in enumerate(text_lines(file), 1):
        try:
            rows.append(parse_json(line))
        except ValueError as error:
            raise InputError(f"{file}, line {number}, is damaged or truncated ({error}); score the videos again") from error
    if not rows or not all(isinstance(row, dict) and "video" in row for row in rows):
        raise InputError(f"{place} must contain results of evaluate run or evaluate score")
    return rows


def by_kind(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Kind of case -> similarity, control and share of sound videos, each a mean with its 95% interval over the cases."""
    table = {}
    for kind in dict.fromkeys(row.get("kind", "") for row in rows):
        some = [row for row in rows if row.get("kind", "") == kind and "unreadable" not in row]
        values = {
            "similarity": [row["similarity"] for row in some if row["similarity"] is not None],
            "control": [row["control"] for row in some if row.get("control") is not None],
            "sound": [float(not row["faults"]) for row in some],
        }
        table[kind or "all"] = {name: [round(v, 4) for v in bootstrap(each)] for name, each in values.items() if each}
    return table


def kind_lines(table: dict[str, dict[str, list[float]]]) -> list[str]:
    """The table by kind, a line each."""
    lines = []
    for kind, values in table.items():
        metrics = [f"{name} {mean:.3f} [{low:.3f}, {high:.3f}]" for name, (mean, low, high) in values.items()]
        lines.append(f"{kind:14} {'   '.join(metrics)}")
    return lines


def write_opens2v(cases: Sequence[Case], videos: Path, tools: Instruments, out: Path) -> list[Path]:
    """OpenS2V's own result files in `out`, id -> column, for the columns that can be computed here; returns the files.

    motionscore.json has motion_fb (its motion_lk is random); aesthetic_score.json and facesim.json's arc_score and cur_score come
    with their networks, and NexusScore, NaturalScore and GmeScore with ours, in files of other names (suites/nexus.py). Faces are
    found by BlazeFace and not by its own detector, so these are near to its columns and not the same.
    """
    columns: dict[str, dict[str, dict[str, float]]] = {name: {} for name in COLUMNS}
    rows = {row["id"]: row for row in read_rows(out.parent)}
    for case in cases:
        row = rows[case.id]
        if "unreadable" in row:
            continue
        if row["motion_fb"] is not None:
            columns["motionscore"][case.id] = {"motion_fb": row["motion_fb"]}
        for name, value in _columns(case, videos / row["video"], tools).items():
            columns[name][case.id] = value
    out.mkdir(exist_ok=True)
    written = []
    for name, values in columns.items():
        if values:
            written.append(out / f"{name}.json")
            write_json(written[-1], values, indent=4)
    write_json(out / WRITTEN, {"files": {file.name: content_hash(file) for file in written}}, sealed=True)
    return written


def check_opens2v(out: Path) -> None:
    """Raise InputError where a result file that `write_opens2v` would write in `out` is there and not ours: they have OpenS2V's
    layout, which leaves no room for a seal, so their hashes lie beside them.
    """
    noted = read_json(out / WRITTEN)["files"] if ours(out / WRITTEN) else {}
    for file in (out / f"{name}.json" for name in COLUMNS):
        if file.exists() and noted.get(file.name) != content_hash(file):
            raise InputError(f"{file} exists and was not written by phantom, or was modified since; choose another --out")


def spread(video: Video, count: int) -> list[np.ndarray]:
    """`count` frames of a video as OpenS2V chooses them, evenly by number and rounded down; two passes over the file."""
    total = sum(1 for _ in video.frames())
    wanted = np.linspace(0, total - 1, count, dtype=int).tolist()
    stills = {number: frame for number, (_, frame) in enumerate(video.frames()) if number in wanted}
    return [stills[number] for number in wanted]


def _columns(case: Case, video: Path, tools: Instruments) -> dict[str, dict[str, float]]:
    """Result file -> columns of a case, by what networks there are."""
    arcface = tools.faces if tools.faces and tools.faces.name.startswith("arcface") else None
    if not any((tools.aesthetic, arcface, tools.curricular, tools.find, tools.ask, tools.gme)):
        return {}
    frames = spread(Video(video), OPENS2V_FRAMES)
    references = [(name, images.read_image(path)[0]) for name, path in case.references]
    values = {
        "aesthetic_score": {"aes_score": float(tools.aesthetic(frames).mean()) if tools.aesthetic else None},
        "facesim": {"arc_score": face_score(case, frames, arcface), "cur_score": face_score(case, frames, tools.curricular)},
        NEXUS: {NEXUS: nexus_score(frames, references, tools)},
        NATURAL: {NATURAL: natural_score(frames, tools)},
        GME: {GME: gme_score(frames, case.prompt, tools)},
    }
    measured = {file: {k: v for k, v in each.items() if v is not None} for file, each in values.items()}
    return {file: each for file, each in measured.items() if each}


def face_score(case: Case, frames: list[np.ndarray], faces: Faces | None) -> float | None:
    """OpenS2V's FaceSim of a case of people, Arc or Cur by the network of `faces`: mean of what is above 0, over frames with a
    face; None where it has no face.
    """
    people = [path for _, path in case.references if path.parent.name in OPENS2V_PEOPLE]
    if not (faces and case.kind in OPENS2V_FACES and people):
        return None
    person = faces.known(images.read_image(people[0])[0])
    if person is None:
        return None
    shown = [face for face in map(faces.known, frames) if face is not None]
    return float(np.mean([max(0.0, faces.alike(face, person)) for face in shown])) if shown else 0.0
