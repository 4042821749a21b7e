"""HTML pages that open anywhere: one file each, with their images inside."""

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from phantom_s2v.files.io import write_text

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}td.n{text-align:right}
figure{display:inline-block;margin:4px;text-align:center;font-size:12px}svg{background:#fafafa}.bad{color:#b00}.good{color:#070}"""


def page(title: str, parts: Iterable[str], style: str = "") -> str:
    """A page of HTML `parts` below its title, with more `style` where it needs some."""
    name = html.escape(title)
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{STYLE}{style}</style><h1>{name}</h1>"
    return head + "".join(parts)


def write_page(path: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page of HTML `parts` below its title, to a file that is sealed as ours."""
    write_text(path, page(title, parts), sealed=True)


def figure(images: Iterable[np.ndarray], words: str) -> str:
    """Images, uint8 [H, W, 3], side by side above a line of HTML."""
    return f"<figure>{''.join(_image(image) for image in images)}<br>{words}</figure>"


def _image(image: np.ndarray) -> str:
    target = io.BytesIO()
    Image.fromarray(image).save(target, "JPEG", quality=85)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(target.getvalue()).decode()}" alt="">'
