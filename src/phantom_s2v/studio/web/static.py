"""Files of the pages: read once, served under an address with their hash, so that a browser keeps them until they change."""

import hashlib
import mimetypes
from functools import cache
from pathlib import Path

import phantom_s2v

FOLDERS = (Path(phantom_s2v.__file__).parent / "assets" / "templates", Path(__file__).parent / "static")
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}  # whatever this machine's own table says


@cache
def static_files() -> dict[str, tuple[bytes, str, str]]:
    """Name -> content, media type, and the first digits of its hash. The reports' page.css gives the colors and the type."""
    found = {}
    for folder in FOLDERS:
        for path in sorted(folder.iterdir()):
            if path.suffix in KINDS or path.name.endswith(".woff2"):
                content = path.read_bytes()
                kind = KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
                found[path.name] = (content, kind, hashlib.sha256(content).hexdigest()[:12])
    return found


def static_url(name: str) -> str:
    """The address of a file."""
    return f"/static/{name}?v={static_files()[name][2]}"
