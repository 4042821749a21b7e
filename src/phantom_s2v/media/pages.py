"""HTML pages that open anywhere: one file each, with their images inside, from the templates of assets/templates."""

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from phantom_s2v.files.io import write_text

TEMPLATES = Path(__file__).parents[1] / "assets" / "templates"


def render(template: str, **values: Any) -> str:
    """A template with its values. Texts are escaped; images, uint8 [H, W, 3], become data URLs by the filters jpeg and png."""
    return environment().get_template(template).render(values)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a rendered template to a file that is sealed as ours."""
    write_text(path, render(template, **values), sealed=True)


@cache
def environment() -> Environment:
    """The one environment of all pages. A value that a template names and nobody gave raises UndefinedError."""
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    jinja.filters |= {"jpeg": jpeg, "png": png}
    return jinja


def jpeg(image: np.ndarray) -> str:
    """An image as a data URL, small."""
    return _url(image, "JPEG", quality=85)


def png(image: np.ndarray) -> str:
    """An image as a data URL, exact."""
    return _url(image, "PNG")


def _url(image: np.ndarray, kind: str, **options: Any) -> str:
    target = io.BytesIO()
    Image.fromarray(image).save(target, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(target.getvalue()).decode()}"
