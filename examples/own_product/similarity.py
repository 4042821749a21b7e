"""Similarity of a subject to eight generated videos, without and with a LoRA: cosine of EfficientNet features of its region.

The last line is one JSON object; the interval is of the paired differences (bootstrap, 95%).
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from phantom_s2v.evaluation.metrics.regions import cut_out, regions
from phantom_s2v.evaluation.suites.classifier import SubjectClassifier
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import model_folder
from phantom_s2v.pipeline.loading import load_models

WAYS, COLORS = ("left", "right", "top", "bottom"), ("blue", "red", "green", "orange")


def similarities(pipe: Any, photos: list[Path], name: str, target: np.ndarray, classifier: SubjectClassifier) -> np.ndarray:
    """One for each of eight videos, of the mean over three frames."""
    rows = []
    for seed in range(8):
        prompt = f"The {name} moves to the {WAYS[seed % 4]} on a {COLORS[seed // 2]} background."
        images = {name: [str(photos[seed % len(photos)])]}
        video = pipe(prompt, reference_images=images, generator=torch.Generator().manual_seed(seed)).frames[0]
        frames = (np.asarray(video) * 255).round().astype(np.uint8)[:: max(1, len(video) // 4)][1:4]
        cuts = [cut_out(frame, found[0]) if (found := regions(frame, 1)) else frame for frame in frames]
        rows.append(np.mean(classifier.features(cuts) @ target))
    return np.array(rows)


def main(
    photos: Annotated[Path, typer.Argument(help="Folder of the images that the LoRA was trained on.")],
    subject: Annotated[Path, typer.Argument(help="Image of the subject on a white background.")],
    lora: Annotated[Path, typer.Argument(help="LoRA file.")],
    name: Annotated[str, typer.Argument(help="Name of the subject.")],
    model: Annotated[str, typer.Option(help="Model.")] = "phantom-mini",
) -> None:
    """Measure and print."""
    classifier = SubjectClassifier()
    target = classifier.reference(np.asarray(Image.open(subject).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)))
    files = sorted(photos.glob("*.png"))
    scores = {}
    for kind, loras in (("before", ()), ("after", ((str(lora), 1.0),))):
        pipe = load_models(model_folder(model), Placement(loras=loras))
        scores[kind] = similarities(pipe, files, name, target, classifier)
    difference = scores["after"] - scores["before"]
    drawn = np.random.default_rng(0).choice(difference, (10_000, len(difference))).mean(1)
    means = {kind: round(float(values.mean()), 4) for kind, values in scores.items()}
    interval = [round(float(edge), 4) for edge in np.quantile(drawn, (0.025, 0.975))]
    print(json.dumps({**means, "difference": round(float(difference.mean()), 4), "interval": interval}))


if __name__ == "__main__":
    typer.run(main)
