"""The import rules of docs/architecture.md, and that importing loads no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "phantom_s2v"
LOW = {"errors", "files", "geometry", "hashes", "media", "reuse", "untrusted", "videos"}
RULES = {
    "errors": set(),
    "untrusted": {"errors"},
    "files": {"errors", "untrusted"},
    "flow": set(),
    "hashes": set(),
    "reuse": {"errors", "files", "hashes"},
    "geometry": {"errors"},
    "colour": set(),
    "videos": {"errors", "geometry", "colour", "untrusted"},
    "media": {"errors", "files", "geometry", "videos", "untrusted"},
    "pages": {"files", "media"},
    "model": {"errors", "files", "geometry", "hashes", "model", "untrusted"},
    "conditioning": {"errors", "geometry", "model"},
    "sampling": {"errors", "geometry", "flow", "conditioning", "sampling"},
    "request": {"errors", "files", "geometry", "untrusted"},
    "record": {"errors", "files", "hashes", "request", "reuse", "untrusted"},
    "prompts": LOW | {"model"},
    "estimate": LOW | {"request"},
    "calibrate": LOW | {"model", "request", "estimate", "sampling"},
    "generate": LOW | {"model", "conditioning", "sampling", "request", "record"},
    "jobs": LOW | {"model", "generate", "request"},
    "pipeline": LOW | {"model", "conditioning", "sampling", "generate", "presets", "request"},
    "data": LOW | {"data", "pages"},
    "backends": LOW | {"data", "evaluation", "model", "presets", "request"},
    "training": {"errors", "files", "geometry", "flow", "hashes", "model", "conditioning", "data", "reuse", "training"},
    "evaluation": LOW | {"data", "pages", "generate", "model", "record", "request", "evaluation"},
    "presets": {"errors", "geometry", "model", "sampling", "training"},
}


def imports(path: Path) -> set[str]:
    """First components, below phantom_s2v, of everything that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("phantom_s2v"):
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_only_what_its_unit_may(path):
    unit = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if unit in ("cli", "__init__", "__main__"):
        return
    assert imports(path) <= RULES[unit], f"{unit} may not import {imports(path) - RULES[unit]}"
    assert "cli" not in imports(path)


@pytest.mark.parametrize(
    "code", ["import phantom_s2v", "import phantom_s2v.geometry, phantom_s2v.media, phantom_s2v.presets, phantom_s2v.request"]
)
def test_import_loads_no_torch(code):
    check = f"{code}; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_help_loads_no_torch():
    check = (
        "import sys; sys.argv = ['phantom', '--help']\n"
        "from phantom_s2v.cli import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


def test_public_names():
    import phantom_s2v

    assert {name for name in phantom_s2v.__all__ if getattr(phantom_s2v, name) is None} == set()
    assert set(phantom_s2v.__all__) == {
        "__version__", "CheckpointError", "DataError", "InputError", "Models", "Output", "OutputError", "PhantomError",
        "PhantomPipeline",
        "PhantomTransformer", "Placement", "Reference", "Request", "load_models", "model_folder",
    }  # fmt: skip
