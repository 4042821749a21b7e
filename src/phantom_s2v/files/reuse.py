"""What an earlier run left behind is used again only where all that made it is the same.

An origin is all that made a result, as JSON: hashes of the contents of weights and inputs, the configuration, and the code of
the stage. It is stored beside everything that can be reused. A result of another origin is recomputed, or rejected with both
values named; nothing is reused for its name. Rounding is no part of an origin: neither the machine nor its threads and types.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Collection, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.hashes import content_hash
from phantom_s2v.files.io import read_json, write_json

Origin = dict[str, Any]  # part -> JSON value
PACKAGE = Path(__file__).parents[1]
MISSING = "not recorded"
SHOWN = 60  # characters of a value in a message


def as_json(origin: Origin) -> Origin:
    """An origin as it reads back: tuples are lists. What is no JSON value is a defect and raises."""
    return json.loads(json.dumps(origin, allow_nan=False))


def origin_hash(origin: Origin) -> str:
    """SHA-256 of an origin."""
    return hashlib.sha256(json.dumps(as_json(origin), sort_keys=True).encode()).hexdigest()


def differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(part, value before, value now) of all parts that differ, nested ones as "config.seed"; `MISSING` if absent."""
    if isinstance(before, dict) and isinstance(now, dict):
        changed = []
        for key in dict.fromkeys([*before, *now]):
            inner = f"{name}.{key}" if name else str(key)
            changed += differences(before.get(key, MISSING), now.get(key, MISSING), inner)
        return changed
    return [] if before == now else [(name, before, now)]


def spelled(changed: Collection[tuple[str, Any, Any]]) -> str:
    """Differences in words."""
    return "; ".join(f"{name} was {_short(before)} and is {_short(now)}" for name, before, now in changed)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]  # of a hash
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def note(file: Path, origin: Origin) -> dict[str, Any]:
    """The note beside a result: the hash of its origin, the hash of its own content, and the origin itself."""
    return {"hash": origin_hash(origin), "content": content_hash(file), "made_by": as_json(origin)}


def why_not(file: Path, noted: Any, origin: Origin) -> str:
    """Why the result in a file cannot stand for `origin`, by the note beside it; empty where it can."""
    if not isinstance(noted, dict) or not isinstance(noted.get("made_by"), dict):
        return "it is not recorded how it was made"
    if changed := differences(noted["made_by"], as_json(origin)):
        return spelled(changed)
    return "" if noted.get("content") == content_hash(file) else "the file itself has changed since"


def claim(folder: Path, origin: Origin, pattern: str, what: str) -> None:
    """Take a folder for results of one origin, which is noted in its origin.json. Two processes may share it.

    Raises DataError where it holds files like `pattern` of another origin, or of one that nobody noted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "origin.json"
    if not file.exists():
        if any(folder.glob(pattern)):
            raise DataError(f"{folder} contains {what} but no {file.name}; choose another folder")
        write_json(file, {"hash": origin_hash(origin), "made_by": as_json(origin)}, sealed=True)
    if changed := differences(read_origin(folder), as_json(origin)):
        raise DataError(
            f"{folder} contains {what} made with other settings: {spelled(changed)}; choose another folder, or remove this one"
        )


def read_origin(folder: Path) -> Origin:
    """The origin of a folder's results. Raises DataError where its note is damaged."""
    file = folder / "origin.json"
    try:
        return dict(read_json(file)["made_by"])
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is damaged ({error}); it describes the files beside it") from error


@cache
def code_version(*modules: str) -> dict[str, str]:
    """The code of a stage: modules of this package (such as "training.latents") with all of it that they import, and the versions
    of Python and of the libraries that these import.

    It follows from the imports, so no version has to be raised by hand. Comments, docstrings and layout do not count, nor do
    patch releases of libraries. Raises ModuleNotFoundError for a name that is no module of this package.
    """
    if absent := [name for name in modules if _source(name) is None]:
        raise ModuleNotFoundError(f"{absent[0]} is no module of {PACKAGE.name}")
    trees, libraries = _closure(modules)
    digest = hashlib.sha256()
    for name in sorted(trees):
        digest.update(f"{name}\n{ast.dump(_without_docstrings(trees[name]))}\n".encode())
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {PACKAGE.name: digest.hexdigest()[:16], "python": python, **dict(_versions(libraries))}


def _closure(modules: Collection[str]) -> tuple[dict[str, ast.Module], set[str]]:
    """The modules of this package that are reached by imports, parsed, and the libraries that they import."""
    trees: dict[str, ast.Module] = {}
    libraries: set[str] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        file = _source(name)
        if name in trees or file is None:
            continue
        trees[name] = ast.parse(file.read_bytes())
        for imported in _imports(trees[name]):
            own, _, rest = imported.partition(".")
            todo += [rest] if own == PACKAGE.name and rest else []
            libraries |= {own} - {PACKAGE.name, *sys.stdlib_module_names}
    return trees, libraries


def _source(name: str) -> Path | None:
    """The file of a module of this package; None where the name is that of something in a module, or of a folder."""
    file = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
    return file if file.is_file() else None


def _imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all that a module imports, in functions too; "from a import b" gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:]
    return tree


def _versions(libraries: Collection[str]) -> Iterator[tuple[str, str]]:
    """Major and minor version of the distributions that hold libraries, those that are installed, in the order of their names."""
    where = packages_distributions()
    found = {each for library in libraries for each in where.get(library, ())}
    for name in sorted(found - {None}):  # what pip is removing at this moment has no name, or no version
        try:
            number = version(name)
        except PackageNotFoundError:
            continue
        if number:
            yield name.lower(), ".".join(number.split(".")[:2])
