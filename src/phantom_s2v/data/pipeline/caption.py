"""Caption: what a clip shows, and its subjects as noun phrases with their appearance (Phantom, section 3.1).

The caption is the captioner's, else the one beside the source video, else none: subjects.py then writes one from what it finds.
"""

import re
from collections.abc import Iterable, Iterator

from phantom_s2v.data.pipeline.batches import batches
from phantom_s2v.data.pipeline.config import Config, Models, Record

LONGEST_PHRASE = 6  # words
_OPENERS = {"a", "an", "the", "his", "her", "its", "their", "two", "three", "four", "one", "another"}
_CLOSERS = frozenset(
    """
    is are was were has have and or while with in on at to from of by into over under near behind beside before as who which
    that then moves move runs run walks walk sits sit stands stand stays stay comes come goes go looks look holds hold wears wear
    jumps jump flies fly plays play eats eat turns turn talks talk smiles smile rides ride
    """.split()  # noqa: SIM905 - a list of sixty strings is not read
)
_PLACES = frozenset({"background", "left", "right", "top", "bottom", "side", "front", "middle", "circle", "place", "scene"})


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Adds caption and phrases to clips; a captioner sees several clips at once."""
    for batch in batches(records, _asks) if models.captions else ([record] for record in records):
        clips = [record for record in batch if _asks(record)]
        if models.captions and clips:
            captions = models.captions([clip["stills"] for clip in clips])
        else:
            captions = [clip["caption"] for clip in clips]
        known = iter(zip(captions, _phrases(captions, models), strict=True))
        for record in batch:
            yield {**record, **dict(zip(("caption", "phrases"), next(known), strict=True))} if _asks(record) else record


def _asks(record: Record) -> bool:
    return record["kind"] == "clip" and not record["drop"]


def _phrases(captions: list[str], models: Models) -> list[list[str]]:
    """The subjects of each caption; none of an empty one."""
    described = [caption for caption in captions if caption]
    found = iter(models.phrases(described) if models.phrases and described else [noun_phrases(caption) for caption in described])
    return [next(found) if caption else [] for caption in captions]


def noun_phrases(caption: str) -> list[str]:
    """Phrases that begin with an article, up to the next verb or preposition of a short list; a model does it better.

    >>> noun_phrases("A small white dog walks on the grass beside a girl in a red coat.")
    ['small white dog', 'grass', 'girl', 'red coat']
    """
    phrases: list[str] = []
    words = re.findall(r"[\w'-]+|[.,;:!?]", caption.lower())
    opened: list[str] | None = None
    for word in [*words, "."]:
        closing = not word[0].isalnum() or word in _CLOSERS or word in _OPENERS or (word.endswith("ing") and bool(opened))
        if opened is not None and (closing or len(opened) == LONGEST_PHRASE):
            if opened and opened[-1] not in _PLACES:
                phrases.append(" ".join(opened))
            opened = None
        if word in _OPENERS:
            opened = []
        elif opened is not None:
            opened.append(word)
    return list(dict.fromkeys(phrases))
