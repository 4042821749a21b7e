"""The import rules of docs/architecture.md, and that importing loads no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "phantom_s2v"
BASE = {"errors", "files", "geometry"}
RULES = {
    "errors": set(),
    "geometry": {"errors"},
    "files": {"errors"},
    "media": BASE,
    "models": BASE,
    "vision": BASE | {"media", "models"},
    "data": BASE | {"media", "vision"},
    "pipeline": BASE | {"media", "models", "vision"},
    "training": BASE | {"models", "data", "pipeline"},
    "evaluation": BASE | {"media", "models", "vision", "data", "pipeline"},
    "studio": BASE | {"media", "models", "vision", "data", "pipeline", "evaluation"},
}  # all may import themselves; cli may import anything, and nothing imports it


def imports(path: Path) -> set[str]:
    """First components, below phantom_s2v, of everything that a file imports."""
    package = ("phantom_s2v", *path.relative_to(SOURCE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else ())))
            names = [f"{module}.{name}" for name in names]
        found |= {name.split(".")[1] for name in names if name.startswith("phantom_s2v.") and name != "phantom_s2v.__version__"}
    return found


def test_every_kind_of_import_is_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    file = tmp_path / "models" / "wan" / "module.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import phantom_s2v.cli\nfrom phantom_s2v import data\nfrom phantom_s2v.media.images import letterbox\n"
        "from ... import training\nfrom ...files import io\nfrom .. import tensors\nfrom . import convert\nimport torch\n"
    )
    assert imports(file) == {"cli", "data", "media", "training", "files", "models"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_only_what_its_unit_may(path):
    unit = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if unit in ("cli", "__init__", "__main__"):
        return
    allowed = RULES[unit] | {unit}
    assert imports(path) <= allowed, f"{unit} may not import {imports(path) - allowed}"


@pytest.mark.parametrize(
    "code",
    [
        "import phantom_s2v",
        "import phantom_s2v.geometry, phantom_s2v.media.images, phantom_s2v.models.registry, phantom_s2v.pipeline.request",
    ],
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
        "__version__", "CheckpointError", "DataError", "InputError", "Output", "OutputError", "PhantomError",
        "PhantomPipeline", "PhantomPipelineOutput", "PhantomMMDiTPipeline", "PhantomWanPipeline",
        "PhantomTransformer", "Placement", "Reference", "Request", "model_folder",
    }  # fmt: skip
