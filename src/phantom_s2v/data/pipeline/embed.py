"""Embed: what a subject looks like, as a vector for the index, and what surrounds it."""

from collections.abc import Iterable, Iterator

import numpy as np

from phantom_s2v.data.pipeline.config import Config, Models, Record


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Adds vector, context, face and whether there is one to the subjects of clips."""
    for record in records:
        if record["kind"] == "clip" and not record["drop"]:
            record = {**record, "subjects": [_embedded(subject, models) for subject in record["subjects"]]}
        yield record


def _embedded(subject: Record, models: Models) -> Record:
    views = subject["views"]
    mean = models.embed([view["cutout"] for view in views]).mean(0)
    face = models.face(views[len(views) // 2]["image"]) if models.face else None
    return {
        **subject,
        "vector": (mean / max(1e-6, float(np.linalg.norm(mean)))).astype(np.float32),
        "context": np.stack([centered(view["surroundings"]) for view in views]),
        "has_face": face is not None,
        "face": np.zeros(models.face_width, np.float32) if face is None else face.astype(np.float32),
    }


def centered(values: np.ndarray) -> np.ndarray:
    """An array as a vector of mean 0 and length 1, float32: the product of two is their correlation.

    Of crops with what surrounds them it is near 1 where the same image was taken twice.
    """
    vector = values.astype(np.float32).ravel()
    vector = vector - vector.mean()
    return vector / max(1e-6, float(np.linalg.norm(vector)))
