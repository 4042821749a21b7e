"""Files: written whole or not at all, never over what we did not write; text in any Unicode encoding, lines as JSON has them.

Our own files end in a seal: the SHA-256 of everything before it, in a form that the format allows. A file whose seal is broken
was changed by someone else and is as foreign as one without.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from filelock import FileLock, Timeout

from phantom_s2v.errors import InputError, OutputError
from phantom_s2v.files.untrusted import not_json, parse_json

MARK = b"phantom-s2v sha256 "
SEAL = len(MARK) + 64
SEALS = {  # suffix in lower case: bytes before and after the seal
    ".mp4": ((8 + SEAL).to_bytes(4, "big") + b"free", b""),  # a box that players skip
    ".png": (b"", b""),  # after the last chunk
    ".html": (b"\n<!-- ", b" -->\n"),
    ".toml": (b"\n# ", b"\n"),
    ".json": (b',\n "seal": "', b'"\n}\n'),  # the last member of the object
    ".jsonl": (b', "seal": "', b'"}\n'),  # the last member of the last row
    ".tar": (b"", b""),  # after the end of the archive
}
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it is larger than this system lets a file be",
    errno.ENAMETOOLONG: "its name is too long",
    errno.EROFS: "the disk can only be read",
    errno.EACCES: "there is no permission to write there",
    errno.ENOENT: "its folder is gone",
}
FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
MAX_ITEM, AHEAD = 64 << 20, 1 << 16  # characters of one item of a JSON object, and read at once
WHITE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder(parse_constant=not_json)
ROOM = 1 << 20  # bytes that must be free before any work starts
MAX_TEXT_FILE_BYTES = 256 << 20  # bytes of a text that is read at once
BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def _scratch(path: Path) -> Path:
    """A name beside `path` that nobody can foresee, short whatever the length of its own."""
    return path.with_name(f".{secrets.token_hex(8)}.partial")


@contextmanager
def naming(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """Errors of writing become one sentence with the file's name."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith((str(path), str(scratch or path))):
            raise  # of another file
        reason = REASONS.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(f"{path} cannot be written: {reason}; partial files were removed") from error


@contextmanager
def writing(path: Path, sealed: bool = False) -> Iterator[BinaryIO]:
    """A new file, open for reading and writing, that takes the place of `path` when the block ends, and is removed if it fails.

    It is made under an unpredictable name in the same folder, follows no link, and has the mode that the umask gives. A `sealed`
    one is ours to replace later (suffixes of SEALS), and does not replace what is not. Raises OutputError where the disk is
    full, the name is too long, or something foreign is there.
    """
    scratch = _scratch(path)
    with naming(path, scratch):
        try:
            with os.fdopen(os.open(scratch, FLAGS, 0o666), "w+b") as file:
                yield file
                if sealed:
                    _seal(file, path.suffix.lower())
                file.flush()
                os.fsync(file.fileno())
            if sealed and os.path.lexists(path) and not ours(path):
                raise OutputError(f"{path} was not written by phantom, or was modified since, and is not overwritten")
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """An empty folder that becomes `path` when the block ends, and is removed if it fails. Raises OutputError as `writing` does,
    and where `path` is a folder with something in it.
    """
    scratch = _scratch(path)
    with naming(path, scratch):
        try:
            scratch.mkdir()
            yield scratch
            scratch.rename(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, all of it or none. Raises OutputError as `writing` does."""
    left = text.encode("utf-8", "backslashreplace")
    with naming(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise


def beside(path: Path, rest: str) -> Path:
    """The name of what belongs to an output: of fox.mp4 and "sheet.png" fox.sheet.png, which is nobody's input by chance."""
    return path.with_name(f"{path.stem}.{rest}")


@contextmanager
def locked(folder: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Be the only process that writes in a folder; where another is, `waiting` is called and its end awaited.

    The lock ends with the process that holds it, however it ends. Raises OutputError where nothing can be written there.
    """
    lock = FileLock(folder / "writer.lock")
    with naming(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str, sealed: bool = False) -> None:
    """Write text as UTF-8; see `writing`."""
    with writing(path, sealed) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # half of a surrogate pair, as in a name that is not UTF-8


def write_json(path: Path, value: Any, sealed: bool = False, indent: int | None = 1) -> None:
    """Write a value as JSON; see `writing`. What is sealed has to be an object that is not empty."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n", sealed)


def _seal(file: BinaryIO, suffix: str) -> None:
    """Append the seal of what was written so far; of JSON it goes into the last object."""
    before, after = SEALS[suffix]
    end = file.seek(0, os.SEEK_END)
    if suffix in (".json", ".jsonl"):
        file.seek(max(0, end - 64))
        tail = file.read().rstrip()
        if not tail.endswith(b"}"):
            raise ValueError(f"only JSON objects can be sealed, not what ends in {tail[-20:]!r}")
        body = max(0, end - 64) + len(tail[:-1].rstrip())
        file.truncate(body)
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = _digest(file, length)
    file.seek(0, os.SEEK_END)
    file.write(before + MARK + digest.encode() + after)


def ours(path: Path) -> bool:
    """Whether a file is as `writing` sealed it. A link, a folder and a file that cannot be read are not."""
    before, after = SEALS.get(path.suffix.lower(), (b"", b""))
    length = len(before) + SEAL + len(after)
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size < length:
            return False
        with path.open("rb") as file:
            body = file.seek(-length, os.SEEK_END)
            match = re.fullmatch(re.escape(before + MARK) + rb"([0-9a-f]{64})" + re.escape(after), file.read())
            file.seek(0)
            return bool(match) and _digest(file, body) == match[1].decode()
    except OSError:
        return False


def _digest(file: BinaryIO, length: int) -> str:
    digest = hashlib.sha256()
    while length and (part := file.read(min(length, 1 << 20))):
        digest.update(part)
        length -= len(part)
    return digest.hexdigest()


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path] = (), force: bool = False, suffix: str = "") -> None:
    """Raise InputError, before any work, for an output that is named twice, is an input, exists already, or cannot be written.

    With `force` those that are `ours` may exist. `inputs` that do not exist are passed over. With `suffix` names must end in it.
    """
    read = {(status.st_dev, status.st_ino) for status in (path.stat() for path in inputs if path.exists())}
    folders: set[Path] = set()
    seen: set[Path] = set()
    for path in outputs:
        if not path.name.endswith(suffix):
            raise InputError(f"the output must be a {suffix} file (got {path.name})")
        if path.parent not in folders:
            check_folder(path.parent)
            folders.add(path.parent)
        place = path.parent.resolve() / path.name
        if place in seen:
            raise InputError(f"two outputs have the same name {path}")
        seen.add(place)
        _check_free(path, read, force)


def _check_free(path: Path, inputs: set[tuple[int, int]], force: bool) -> None:
    """Raise InputError if `path` exists and must not be replaced, or where its name cannot be one."""
    check_name(path)
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be written: {REASONS.get(error.errno or 0, error.strerror)}") from error
    if path.is_dir():
        raise InputError(f"the output must be a file (got the folder {path})")
    if path.exists() and (path.stat().st_dev, path.stat().st_ino) in inputs:
        raise InputError(f"the output {path} is also an input; choose another name")
    if not ours(path):
        raise InputError(f"{path} exists and was not written by phantom, or was modified since; choose another name")
    if not force:
        raise InputError(f"{path} already exists; choose another name, or overwrite it with --force")


def check_new_folder(out: Path, room: int = ROOM) -> None:
    """Raise InputError where a folder cannot be made: something is there already, or its own folder has too little room."""
    check_name(out)
    if os.path.lexists(out) and (not out.is_dir() or out.is_symlink() or any(out.iterdir())):
        raise InputError(f"{out} already exists; choose another name")
    check_folder(out.absolute().parent, room)


def check_name(path: Path) -> None:
    """Raise InputError for a name that is not UTF-8, which Lance and safetensors cannot write to."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the output name {path} must be UTF-8") from error


def check_folder(folder: Path, room: int = ROOM) -> None:
    """Raise InputError where a folder is missing, cannot be written, or has fewer than `room` bytes free."""
    check_name(folder)
    if not folder.is_dir():
        raise InputError(f"the output folder {folder} does not exist")
    scratch = _scratch(folder / "probe")
    try:
        try:
            with os.fdopen(os.open(scratch, FLAGS, 0o666), "wb") as file:
                file.write(bytes(4096))
                os.fsync(file.fileno())
        finally:
            scratch.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = REASONS.get(error.errno or 0, error.strerror)
        raise InputError(f"the output folder {folder} is not writable: {reason}") from error
    if free < room:
        raise InputError(f"the output folder {folder} needs {room / 1e6:.1f} MB of free space (got {free / 1e6:.1f} MB)")


def _encoding(head: bytes) -> str:
    """The encoding that the first bytes of a text show: by its byte order mark or, of ASCII in UTF-16, by its zeros."""
    for mark, encoding in BOMS:
        if head.startswith(mark):
            return encoding
    if len(head) > 1 and 0 in head[:2] and any(head[:2]):
        return "utf-16-be" if head[0] == 0 else "utf-16-le"
    return "utf-8"


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a text file, without their ends, one in memory at a time. Raises InputError where it cannot be read.

    UTF-8, UTF-16 and UTF-32, with and without a byte order mark. Lines end as JSON Lines has it, in LF or CR LF (or CR): other
    Unicode separators are allowed inside JSON strings and end nothing.
    """
    number = 0
    try:
        with path.open("rb") as file:
            encoding = _encoding(file.read(4))
        with path.open(encoding=encoding) as file:
            for number, line in enumerate(file, 1):  # noqa: B007 - named if decoding fails
                yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} must be UTF-8 text (byte 0x{error.object[error.start]:02x} in line {number + _ends(error) + 1})"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _ends(error: UnicodeDecodeError) -> int:
    """How many lines end, in the part of a text that was being decoded, before the byte that cannot be."""
    return len(re.findall("\r\n?|\n", error.object[: error.start].decode(error.encoding, "replace")))


def read_text(path: Path) -> str:
    """A text file whole, of at most MAX_TEXT_FILE_BYTES bytes; see `text_lines`."""
    try:
        size = path.stat().st_size
    except OSError:
        size = 0  # unreadable files are reported below
    if size > MAX_TEXT_FILE_BYTES:
        raise InputError(f"{path} must have at most {MAX_TEXT_FILE_BYTES >> 20} MiB (got {size >> 20} MiB)")
    return "\n".join(text_lines(path))


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises InputError where it is none."""
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error


def json_items(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of the JSON object in a UTF-8 file, one in memory at a time.

    Raises InputError where the file is none, at the item where it is damaged: those before it have been given by then.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _items(_Ahead(file))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a valid JSON object ({error})") from error


def _items(text: "_Ahead") -> Iterator[tuple[str, Any]]:
    text.expect("{")
    if text.sign() == "}":
        return
    while True:
        key = text.value()
        if not isinstance(key, str):
            raise ValueError("a key must be a text")
        text.expect(":")
        yield key, text.value()
        if text.expect(",}") == "}":
            return


class _Ahead:
    """A text that is read as far as the next JSON value needs; an object of any size takes the memory of its largest item.

    Not by ijson, whose memory grows with the square of the depth: a file of 100 kB ended the process.
    """

    def __init__(self, file: TextIO) -> None:
        self.file, self.held, self.place = file, "", 0

    def _more(self) -> bool:
        """Read about as much again as is held; False at the end of the file."""
        self.held, self.place = self.held[self.place :], 0
        if len(self.held) > MAX_ITEM:
            raise ValueError(f"an item must have at most {MAX_ITEM:,} characters")
        part = self.file.read(max(AHEAD, len(self.held)))
        self.held += part
        return bool(part)

    def sign(self) -> str:
        """The next sign that is no white space, which stays; empty at the end of the file."""
        while True:
            self.place = WHITE.match(self.held, self.place).end()  # type: ignore[union-attr]
            if self.place < len(self.held) or not self._more():
                return self.held[self.place : self.place + 1]

    def expect(self, signs: str) -> str:
        """Read the next sign. Raises ValueError where it is none of `signs`."""
        sign = self.sign()
        if not sign or sign not in signs:
            raise ValueError(f"{' or '.join(signs)} must come next (got {sign or 'the end of the file'!r})")
        self.place += 1
        return sign

    def value(self) -> Any:
        """Read the next value. Raises ValueError where there is none, or a number may go on at the end of the file."""
        self.sign()
        while True:
            try:
                value, end = DECODER.raw_decode(self.held, self.place)
                if end < len(self.held):
                    self.place = end
                    return value
                reason = "the end of the file"
            except RecursionError as error:
                raise ValueError("nested too deeply") from error
            except json.JSONDecodeError as error:
                reason = error.msg
            if not self._more():
                raise ValueError(reason)
