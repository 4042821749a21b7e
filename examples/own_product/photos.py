"""Ten images of a held-out emoji on different backgrounds, to try run.sh on, and the subject alone."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from phantom_s2v.data.synthetic.appearance import PLAIN_APPEARANCE
from phantom_s2v.data.synthetic.compose import Shot, compose, plain_spec
from phantom_s2v.data.synthetic.heldout import evaluated, held_out


def main(
    out: Annotated[Path, typer.Argument(help="Output folder: photos/0.png to photos/9.png, subject.png.")],
    number: Annotated[int, typer.Option(help="Which of the evaluated held-out subjects.")] = 0,
) -> None:
    """Compose and write them, and print the subject's name."""
    store = held_out()
    subject = evaluated(store)[number]
    (out / "photos").mkdir(parents=True, exist_ok=True)
    for place in range(10):
        spec = plain_spec(np.random.default_rng([3, place]), (subject,), 1, 128)
        cast = replace(spec.casts[0], appearance=PLAIN_APPEARANCE)
        clip = compose(replace(spec, casts=(cast,), shots=((Shot(),),)), store)
        Image.fromarray(clip.video[0]).save(out / "photos" / f"{place}.png")
    Image.fromarray(clip.references[0]).save(out / "subject.png")
    print(subject.name)


if __name__ == "__main__":
    typer.run(main)
