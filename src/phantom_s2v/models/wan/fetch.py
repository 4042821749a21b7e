"""From the hub to a converted model folder: what is needed is looked up, checked and converted, and an interrupted fetch goes on.

What the hub's own cache has is used. The rest is downloaded beside the converted models, by the hub's client but into a file that
stays when the download is interrupted, which the client's own cache does not keep: the text encoder alone is 11 GB.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, tqdm

from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.files.hashes import cache_folder, content_hash, remember_hash
from phantom_s2v.files.io import check_new_folder, locked, read_json, write_json
from phantom_s2v.models.registry import FETCHED, fetched_folder
from phantom_s2v.models.wan.convert import T5_FILE, VAE_FILE, Report, convert

WAN, PHANTOM = "Wan-AI/Wan2.1-T2V-1.3B", "bytedance-research/Phantom"  # both sizes of Phantom use this encoder and autoencoder
REVISION = "main"  # of both repositories, unless another is asked for; it is resolved to one commit, which facts.json notes
COMMIT = re.compile("[0-9a-f]{40}")
WAN_FILES = (VAE_FILE, T5_FILE, "google/umt5-xxl/*")
CLIENTS = ("huggingface_hub", "httpx", "httpx2", "requests", "hf_xet")  # whose errors are the network's or the hub's
PHANTOM_FILES = {
    "phantom-wan-1.3b": ("Phantom-Wan-1.3B.pth",),
    "phantom-wan-14b": ("Phantom_Wan_14B.safetensors.index.json", "Phantom_Wan_14B-*.safetensors"),
}


@dataclass(frozen=True)
class Remote:
    """A file of a repository at one commit."""

    repository: str
    commit: str
    name: str
    size: int  # bytes
    sha256: str | None  # of a large file, which git LFS holds
    git: str  # SHA-1 of a small one, as git has it

    def place(self) -> Path:
        """Its path in the cache."""
        return downloads() / self.repository / self.commit / self.name

    def partial(self) -> Path:
        """What came of it before the download was interrupted."""
        return self.place().with_name(f"{self.place().name}.part")

    def cached(self) -> Path | None:
        """The file in the hub's own cache."""
        path = try_to_load_from_cache(self.repository, self.name, revision=self.commit)
        return Path(path) if isinstance(path, str) else None

    def missing(self) -> int:
        """Bytes that are still to be fetched."""
        if self.place().is_file() or self.cached():
            return 0
        return self.size - (self.partial().stat().st_size if self.partial().is_file() else 0)

    def check(self, path: Path) -> None:
        """Raise CheckpointError, and remove the file, where it is not what the hub says."""
        if self.sha256 is not None:
            sound = content_hash(path) == self.sha256
        else:
            content = path.read_bytes()
            sound = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.git
        if not sound:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise CheckpointError(f"{self.name} of {self.repository} came damaged and was removed; run the same command again")


def fetch(
    name: str,
    out: Path | None,
    tell: Callable[[str], object],
    report: Report,
    revision: str = REVISION,
    wan_revision: str = REVISION,
) -> Path:
    """Fetch and convert a model by its name; returns its folder, `out` or the one in the user's cache that `--model NAME` finds.

    A revision is a branch, a tag or a commit. It is resolved to one commit first, from which all files come, and which facts.json
    notes; an interrupted fetch of the same revision goes on with the commit that it began with. `tell` gets sizes, licenses and
    paths before anything is fetched, `report` the progress. What was fetched before is kept.
    Raises InputError for another name, where something is in `out`, the model is there of another commit, or the disk has too
    little room, CheckpointError where the hub cannot be reached, lacks a file, or a file is damaged.
    """
    if name not in FETCHED:
        raise InputError(f"there is no model {name!r} to fetch; it must be {' or '.join(FETCHED)}")
    target = out or fetched_folder(name)
    if out is None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if (target / "facts.json").is_file():
            _check_same(target, {PHANTOM: revision, WAN: wan_revision})
            tell(f"{name} is there already: {target}")
            return target
    check_new_folder(target)
    files = _remotes(name, revision, wan_revision, tell)
    _check_room(files, target, tell)
    commits = {file.repository: file.commit for file in files}
    asked = {PHANTOM: revision, WAN: wan_revision}
    write_json(downloads() / f"{name}.json", {each: [asked[each], commit] for each, commit in commits.items()})
    with locked(downloads(), lambda: tell("another fetch is running; waiting for its end")):
        paths = {file: _download(file, report) for file in files}
    source = next(path for file, path in paths.items() if file.repository == PHANTOM)
    folder = next(path for file, path in paths.items() if file.name.endswith(VAE_FILE)).parent
    convert(folder, source if source.suffix == ".pth" else source.parent, target, report, origin={"commits": commits})
    for file, path in paths.items():
        if file.repository == PHANTOM:  # the rest is needed again for the other size
            path.unlink()
    (downloads() / f"{name}.json").unlink(missing_ok=True)
    tell(f"{downloads()} keeps the encoder and autoencoder for the other size; it can be removed")
    return target


def _remotes(name: str, revision: str, wan_revision: str, tell: Callable[[str], object]) -> list[Remote]:
    """The files of a model at the revisions asked for, else at those of a fetch that was begun. Sizes and licenses are said."""
    begun = _begun(name)
    with _hub_errors():
        phantom, license = look_up(PHANTOM, begun.get((PHANTOM, revision), revision), PHANTOM_FILES[name])
        wan, wan_license = look_up(WAN, begun.get((WAN, wan_revision), wan_revision), WAN_FILES)
    for remotes, terms in ((wan, wan_license), (phantom, license)):
        tell(f"{remotes[0].repository} at {remotes[0].commit[:12]}: {_gigabytes(sum(f.size for f in remotes))}, license {terms}")
    return [*wan, *phantom]


def _begun(name: str) -> dict[tuple[str, str], str]:
    """The commit, by repository and asked revision, with which a fetch of this model began and was interrupted: the same one goes
    on, and what came is not mixed with a newer one nor fetched again.
    """
    file = downloads() / f"{name}.json"
    try:
        known = read_json(file).items() if file.is_file() else ()
        return {(repository, revision): commit for repository, (revision, commit) in known if COMMIT.fullmatch(commit)}
    except (InputError, AttributeError, TypeError, ValueError):
        return {}


def _check_same(target: Path, asked: dict[str, str]) -> None:
    """Raise InputError where a model that is there is of another commit than the one that is asked for.

    A branch or a tag, beside the default, cannot be compared without the hub, and is refused as well.
    """
    commits = read_json(target / "facts.json").get("commits") or {}
    for repository, revision in asked.items():
        if revision not in (REVISION, commits.get(repository)):
            raise InputError(
                f"{target} is of commit {commits.get(repository, 'unknown')} of {repository}, not of {revision}; give another "
                "folder by --out, or remove it"
            )


def downloads() -> Path:
    """Folder of what was fetched and is not converted yet, under the user's cache."""
    return cache_folder() / "downloads"


def look_up(repository: str, revision: str, patterns: tuple[str, ...]) -> tuple[list[Remote], str]:
    """The files of a repository that match `patterns`, at the commit of `revision`, and its license."""
    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
        raise CheckpointError(
            f"the hub gives commit {commit} for {revision} of {repository}; it must be a full commit, and that one"
        )
    files = []
    for pattern in patterns:
        alike = [s for s in info.siblings or [] if fnmatch(s.rfilename, pattern) or fnmatch(s.rfilename, f"*/{pattern}")]
        if not alike:
            raise CheckpointError(f"{repository} has no {pattern} at {revision}; choose another revision")
        for s in alike:
            files.append(Remote(repository, commit, s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None, s.blob_id or ""))
    card: Any = info.card_data or {}
    tagged = next((tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")), None)
    return files, str(card.get("license") or tagged or "not stated")


def _check_room(files: list[Remote], target: Path, tell: Callable[[str], object]) -> None:
    """Say where the files go. Raise InputError where the disks have too little room for what is still missing."""
    cache, wanted = downloads(), sum(file.missing() for file in files)
    made = sum(file.size for file in files)
    tell(f"to fetch: {_gigabytes(wanted)} into {cache}; the converted model of {_gigabytes(made)} goes to {target}")
    cache.mkdir(parents=True, exist_ok=True)
    together = cache.stat().st_dev == target.absolute().parent.stat().st_dev
    for place, needed in ((cache, wanted + made if together else wanted), (target.absolute().parent, made)):
        free = shutil.disk_usage(place).free
        if free < needed:
            raise InputError(
                f"{place} has {_gigabytes(free)} free, and {_gigabytes(needed)} are needed; make room, or choose another disk"
            )


def _download(file: Remote, report: Report) -> Path:
    """The file, fetched as far as it is missing, and checked."""

    class Bar(tqdm):  # the hub's own, which is silent and tells `report`
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.done = options.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            self.done += n or 0
            report(file.name, int(self.done), file.size)

    path, part = file.place(), file.partial()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() and (cached := file.cached()):
        path.unlink(missing_ok=True)
        path.symlink_to(cached)
    if path.is_file():
        file.check(path)
    else:
        url = hf_hub_url(file.repository, file.name, revision=file.commit)
        with _hub_errors(), part.open("ab") as opened:
            start = opened.tell()
            http_get(url, opened, resume_size=start, headers=build_hf_headers(), expected_size=file.size, tqdm_class=Bar)
        file.check(part)
        part.rename(path)
        if file.sha256:
            remember_hash(path, file.sha256)
    report(file.name, file.size, file.size)
    return path


@contextmanager
def _hub_errors() -> Iterator[None]:
    """What the hub's client raises, and the library below it, which changes between its versions, as one sentence."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in CLIENTS:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = "what came is kept, and the same command goes on"
        raise CheckpointError(f"the weights cannot be had from {constants.ENDPOINT} ({reason[:200]}); {advice}") from error


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"
