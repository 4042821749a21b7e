"""Records in batches, for stages whose model answers several questions at once."""

from collections.abc import Callable, Iterable, Iterator

from phantom_s2v.data.pipeline.config import Record

AT_ONCE = 4  # questions to a model, whose images are in memory
LONGEST = 16  # records of a batch, of which most may ask nothing


def batches(records: Iterable[Record], asks: Callable[[Record], bool]) -> Iterator[list[Record]]:
    """Records in their order, in lists of which AT_ONCE ask a model something; shorter where others would pile up."""
    batch: list[Record] = []
    asked = 0
    for record in records:
        batch.append(record)
        asked += asks(record)
        if asked == AT_ONCE or len(batch) == LONGEST:
            yield batch
            batch, asked = [], 0
    if batch:
        yield batch
