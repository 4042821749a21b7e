"""Names of subjects and captions that use them: out of the given caption where there is one, else by colors and motion."""

import re
from typing import Any

import numpy as np

from phantom_s2v.data.synthetic.appearance import nearest_color
from phantom_s2v.media.images import border

PEOPLE = frozenset(
    """
    actor actress adult athlete baby boy bride chef child clown cook couple dancer doctor driver farmer father fireman
    fisherman friend gentleman girl groom guy kid lady man model mother musician nurse officer person player police policeman
    policewoman rider runner singer skater skier snowboarder soldier student surfer swimmer teacher teenager toddler waiter
    waitress woman worker
    """.split()  # noqa: SIM905 - a list of fifty strings is not read
)


def name(subjects: list[dict[str, Any]], phrases: list[str], caption: str) -> list[dict[str, Any]]:
    """Subjects that the caption names: those that a detector named with its words, and one person or thing that it must mean.

    Where there is no caption, all of them, by the names that they have.
    """
    if not caption:
        return subjects
    free = [phrase for phrase in phrases if not any(s["has_caption_name"] and s["name"] == phrase for s in subjects)]
    for of_people in (True, False):
        unnamed = [s for s in subjects if not s["has_caption_name"] and s["is_person"] == of_people]
        fitting = [phrase for phrase in free if names_person(phrase) == of_people]
        if len(unnamed) == len(fitting) == 1:
            unnamed[0].update(name=fitting[0], has_caption_name=True)
    return [s for s in subjects if s["has_caption_name"] and s["name"].lower() in caption.lower()]


def names_person(phrase: str) -> bool:
    """Whether a noun phrase is of a person, by its last word that says so."""
    return any(word in PEOPLE for word in re.findall(r"[a-z]+", phrase.lower()))


def look(pixels: np.ndarray) -> str:
    """One or two words for the colors of a subject: those that most of its pixels are nearest to."""
    sample = pixels[:: max(1, len(pixels) // 400)]
    names, counts = np.unique([nearest_color(pixel) for pixel in sample], return_counts=True)
    order = np.argsort(-counts)
    second = len(order) > 1 and counts[order[1]] > 0.3 * len(sample)
    return f"{names[order[0]]} and {names[order[1]]}" if second else str(names[order[0]])


def tell_apart(subjects: list[dict[str, Any]]) -> bool:
    """Give subjects of one name their place as well, where the names are ours; whether every name is now another.

    Names out of a caption are left alone: a caption that calls two subjects the same cannot train a model to keep them apart.
    """
    for name in {s["name"] for s in subjects}:
        alike = [s for s in subjects if s["name"] == name]
        if len(alike) == 2 and not any(s["has_caption_name"] for s in alike):
            alike.sort(key=lambda s: s["views"][0]["share"][0])
            for subject, side in zip(alike, ("left", "right"), strict=True):
                subject["name"] = f"{name} on the {side}"
    return len({s["name"] for s in subjects}) == len(subjects)


def describe(subjects: list[dict[str, Any]], still: np.ndarray) -> str:
    """A plain caption: every subject by its name, what it does, and the color of the background."""
    acts = [f"the {s['name']} {_act(s)}" for s in subjects]
    text = f"{', '.join(acts)}, in front of a {nearest_color(np.median(border(still, 2), 0))} background."
    return text[0].upper() + text[1:]


def _act(subject: dict[str, Any]) -> str:
    """What a subject does between its first and its last view."""
    first, last = (np.array(subject["views"][i]["share"]) for i in (0, -1))
    x, y = (first[[2, 3]] + first[[0, 1]]) / 2 - (last[[2, 3]] + last[[0, 1]]) / 2
    growth = np.prod(last[2:] - last[:2]) / np.prod(first[2:] - first[:2])
    if growth > 1.4 or growth < 0.7:
        return "comes closer" if growth > 1 else "moves away"
    if max(abs(x), abs(y)) < 0.04:
        return "stays in place"
    return (
        ("moves to the left" if x > 0 else "moves to the right") if abs(x) > abs(y) else ("moves up" if y > 0 else "moves down")
    )
