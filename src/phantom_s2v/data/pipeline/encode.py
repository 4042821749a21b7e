"""Encode: the videos of the clips that are kept. It is the dearest stage by far, so it is the last one."""

from collections.abc import Iterable, Iterator

import av

from phantom_s2v.data.pipeline.config import Config, Models, Record
from phantom_s2v.data.pipeline.frames import encoded
from phantom_s2v.media.videos import UnreadableVideoError


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Adds video to clips."""
    for record in records:
        if record["kind"] == "clip" and not record["drop"]:
            try:
                record = {**record, "video": encoded(record["origin"], record["frames"], config.longest_side)}
            except (av.FFmpegError, UnreadableVideoError) as error:
                record = {**record, "drop": f"cannot be cut out ({getattr(error, 'reason', error)})"}
        yield record
