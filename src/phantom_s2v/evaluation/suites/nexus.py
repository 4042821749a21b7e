"""OpenS2V-Nexus' scores that need larger networks, reimplemented on networks of one's own: never set beside its leaderboard.

NexusScore is made with YOLO-World and GME there, and with OWLv2 and CLIP here; NaturalScore with a paid model there, and with a
local vision-language model here; GmeScore with GME's own code there, and on transformers' class here (vision/gme.py). Their files
carry other names than the benchmark's, so that nobody mistakes one for the other.
"""

import re
from collections.abc import Sequence

import numpy as np

from phantom_s2v.evaluation.instruments import Instruments

NEXUS, NATURAL, GME = "nexusscore_owlv2", "naturalscore_vlm", "gmescore_qwen2vl"
QUESTION = (
    "These are frames of one video, in order. Rate how natural it is, whether things, people and motion obey the laws of nature "
    "and common sense: 1 (absurd), 2 (unnatural), 3 (somewhat unnatural), 4 (nearly natural), 5 (natural). Answer with the "
    "number."
)
SHOWN = 8  # frames that the vision-language model sees


def nexus_score(frames: Sequence[np.ndarray], references: Sequence[tuple[str, np.ndarray]], tools: Instruments) -> float | None:
    """Similarity of references (name, image) and what a detector finds under their names in frames, mean over both; -1..1.

    A frame in which nothing is found counts as 0: a subject that is not there is not preserved. None without networks.
    """
    if not (tools.find and tools.clip and references):
        return None
    known = tools.clip([image for _, image in references])
    values = []
    for (name, _), vector in zip(references, known, strict=True):
        for frame, boxes in zip(frames, tools.find(list(frames), [name]), strict=True):
            parts = [frame[top:bottom, left:right] for (left, top, right, bottom), _, _ in boxes[:1]]
            values.append(float(tools.clip(parts)[0] @ vector) if parts else 0.0)
    return float(np.mean(values))


def natural_score(frames: Sequence[np.ndarray], tools: Instruments) -> float | None:
    """How natural a vision-language model calls frames, 0..1; None without one, or where it does not answer with a number."""
    if not tools.ask:
        return None
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, min(SHOWN, len(frames))).astype(int)]
    answer = re.search(r"[1-5]", tools.ask(chosen, QUESTION))
    return (int(answer[0]) - 1) / 4 if answer else None


def gme_score(frames: Sequence[np.ndarray], prompt: str, tools: Instruments) -> float | None:
    """Similarity of a prompt and frames by GME, mean over frames, -1..1: does the video show what was asked for.

    It sees each frame by itself, so neither motion nor order counts. None without GME.
    """
    return float((tools.gme(list(frames)) @ tools.gme_words(prompt)).mean()) if tools.gme and tools.gme_words else None
