"""From options to requests, and from requests to files: what the command line and others that make videos share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from phantom_s2v.errors import InputError, PhantomError
from phantom_s2v.files.io import beside, check_outputs, read_json, text_lines, write_json
from phantom_s2v.files.reuse import Origin, note, why_not
from phantom_s2v.files.untrusted import exists, parse_json
from phantom_s2v.geometry import parse_size
from phantom_s2v.media import images
from phantom_s2v.models.autoencoder import to_video
from phantom_s2v.models.registry import Preset
from phantom_s2v.pipeline.generate import OnStep, Output, generate, request_images
from phantom_s2v.pipeline.request import Reference, Request, check_request, split_reference, with_defaults

DEFAULTED = (
    "num_frames",
    "fps",
    "num_inference_steps",
    "solver",
    "image_guidance_scale",
    "guidance_scale",
    "negative_prompt",
)  # by the preset
FILES = ("first_frame", "background", "segmenter")
SWITCHES = ("untrained_size", "cutout", "several_views", "released_behavior")
OPTIONS = {"prompt", "reference", "size", "seed", "out", *DEFAULTED, *FILES, *SWITCHES}
SHEET, METADATA, PREVIEW = "sheet.png", "metadata.json", "preview.png"  # what is written beside a video, fox.sheet.png of fox.mp4
Job = tuple[Request, Path]  # a request and the .mp4 that it becomes


def build_request(options: dict[str, Any], preset: Preset) -> Request:
    """A request out of options, with the preset's defaults. Raises InputError for what cannot be made."""
    if extra := sorted(set(options) - OPTIONS):
        raise InputError(f"unknown option {', '.join(extra)}; options of a request are {', '.join(sorted(OPTIONS))}")
    height, width = parse_size(str(options["size"])) if options.get("size") else (None, None)
    named = [_named(each, i) for i, each in enumerate(_listed(options.get("reference")))]
    request = with_defaults(
        preset,
        prompt=options.get("prompt") or "",
        references=tuple(Reference(path, name) for name, path in named),
        height=height,
        width=width,
        seed=options.get("seed"),
        **{name: options.get(name) for name in (*DEFAULTED, *FILES)},
        **{name: bool(options.get(name)) for name in SWITCHES},
    )
    check_request(request, preset)
    return request


def _listed(references: Any) -> list[Any]:
    if references is not None and not isinstance(references, list | tuple):
        raise InputError(f"reference must be a list of [NAME=]PATH (got {references!r})")
    return list(references or ())


def _named(each: Any, number: int) -> tuple[str, str]:
    """(name, path) of "[NAME=]PATH", or of a pair, whose parts are taken as they are."""
    if isinstance(each, tuple):
        return each
    if not isinstance(each, str):
        raise InputError(f"reference {number + 1} must be [NAME=]PATH (got {each!r})")
    return split_reference(each, number)


def parse_loras(texts: list[str]) -> tuple[tuple[str, float], ...]:
    """(file, scale) of every "FILE[=SCALE]"; a file whose own name holds "=" is taken as it is."""
    loras = []
    for text in texts:
        file, equals, scale = text.rpartition("=")
        if not equals or exists(Path(text)):
            file, scale = text, "1"
        try:
            loras.append((file, float(scale)))
        except ValueError as error:
            raise InputError(f"lora must be FILE or FILE=SCALE with a number (got {text!r})") from error
    return tuple(loras)


def outputs_of(target: Path, preview: bool = False) -> list[Path]:
    """The files that a video is written with."""
    return [target, *(beside(target, rest) for rest in (SHEET, METADATA, *([PREVIEW] if preview else [])))]


def inputs_of(request: Request) -> list[Path]:
    """The files that a request reads."""
    named = [r.path for r in request.images()] + ([request.first_frame] if request.first_frame else [])
    return [Path(path) for path in named]


def check_names(jobs: list[Job], inputs: list[Path], preview: bool, force: bool) -> None:
    """Raise InputError, before any work, where outputs of jobs collide with each other, with any input, or with what is there.

    With `force` what is there may be ours.
    """
    for _, target in jobs:
        _check_suffix(target)
    outputs = [path for _, target in jobs for path in outputs_of(target, preview)]
    check_outputs(outputs, [*inputs, *(path for request, _ in jobs for path in inputs_of(request))], force)


def _check_suffix(target: Path) -> None:
    if target.suffix.lower() != ".mp4":
        raise InputError(f"the output must be an .mp4 file (got {target.name})")


def check_job(request: Request, target: Path) -> None:
    """Raise InputError for an image or an output that cannot be used, before anything loads."""
    _check_suffix(target)
    check_outputs(outputs_of(target), inputs_of(request), force=True)
    request_images(request)
    if request.first_frame:
        images.read_image(Path(request.first_frame))


def read_request(line: str, folder: Path, number: int, preset: Preset) -> Job:
    """The job of one JSON line; `number` names its video where the line does not. Raises InputError."""
    try:
        options = parse_json(line)
        name = str(options.get("out", f"{number:04d}.mp4"))
        if Path(name).name != name:
            raise InputError(f"out must be a file name without a folder (got {name!r})")
        return build_request(options, preset), folder / name
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise InputError(f"invalid request: {error}") from error


def read_requests(file: Path, folder: Path, preset: Preset) -> tuple[list[Job], list[str], int]:
    """Jobs of a JSON lines file, what is wrong with other lines, and how many lines there are.

    Raises InputError where two requests have one output.
    """
    jobs, faults, lines = [], [], [line for line in text_lines(file) if line.strip()]
    numbers: dict[Path, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            request, target = read_request(line, folder, number, preset)
            numbers.setdefault(target, number)
            check_job(request, target)
            jobs.append((request, target))
        except PhantomError as error:
            faults.append(f"{file.name}, request {number}: {error}")
        else:
            if numbers[target] != number:
                raise InputError(
                    f"{file.name}, requests {numbers[target]} and {number} have the same output {target.name}; give each "
                    "request a different out"
                )
    return jobs, faults, len(lines)


@dataclass(frozen=True)
class BestOf:
    """Make `count` candidates, of the request's seed and those after it, and keep the one that `rank` puts highest."""

    count: int
    rank: Callable[[np.ndarray, list[np.ndarray]], float]  # video, references -> score
    by: str  # what ranks
    network: str  # hash of its weights

    @property
    def origin(self) -> Origin:
        """What of it makes a video."""
        return {"count": self.count, "by": self.by, "network": self.network}


def remade_because(target: Path, origin: Origin) -> str | None:
    """Why a video has to be made again; empty where the one there is what `origin` makes, None where none is there."""
    if not target.exists():
        return None
    try:
        noted = read_json(beside(target, METADATA))["origin"]
    except (InputError, KeyError, TypeError):
        noted = None
    return why_not(target, noted, origin)


def make(
    request: Request,
    pipe: Any,
    target: Path,
    preview: bool,
    report: Callable[[int], None],
    origin: Origin,
    write: bool = True,
    best_of: BestOf | None = None,
) -> list[str]:
    """Make one video with its sheet and metadata; returns what was done to its input. `report` gets the steps done.

    `origin` is what makes it (see `origin_of`); it is noted in the metadata, by which a later run knows the video.

    Processes beside the first compute the same and do not `write`.
    """

    def on_step(done: int, steps: int, clean: Any) -> None:
        report(done)
        if preview and write and done % max(1, steps // 6) == 0:
            _preview(pipe, clean, beside(target, PREVIEW))

    try:
        output = _best(request, pipe, on_step, best_of) if best_of else generate(request, pipe, on_step)
        if write:
            _write(output, request, target, origin)
    finally:
        if preview and write:
            beside(target, PREVIEW).unlink(missing_ok=True)
    return output.notices


def _best(request: Request, pipe: Any, on_step: OnStep, best_of: BestOf) -> Output:
    """The candidate with the highest rank (the first on a tie); its metadata lists the scores of all candidates."""
    reference_images = request_images(request)[0]
    best, scores = None, []
    for seed in range(request.seed, request.seed + best_of.count):
        output = generate(replace(request, seed=seed), pipe, on_step)
        scores.append(best_of.rank(output.video, reference_images))
        if best is None or scores[-1] > max(scores[:-1]):
            best = output
    assert best
    seeds = range(request.seed, request.seed + best_of.count)
    best_of_metadata = {
        "count": best_of.count,
        "by": best_of.by,
        "scores": {s: round(v, 4) for s, v in zip(seeds, scores, strict=True)},
    }
    return replace(best, metadata={**best.metadata, "best_of": best_of_metadata})


def _preview(pipe: Any, clean: Any, path: Path) -> None:
    images.write_image(path, images.contact_sheet([], to_video(pipe.decode(clean)[0])))


def _write(output: Output, request: Request, target: Path, origin: Origin) -> None:
    """Sheet and video first, the metadata last, since it holds the video's hash: if the metadata matches, the output is
    complete.
    """
    images.write_image(beside(target, SHEET), images.contact_sheet(output.references, output.video))
    images.write_video(target, output.video, request.fps)
    note_video(target, origin, output.metadata)


def note_video(target: Path, origin: Origin, metadata: dict[str, Any]) -> None:
    """Write the metadata beside a video, with what made it."""
    write_json(beside(target, METADATA), {**metadata, "origin": note(target, origin)}, sealed=True)
