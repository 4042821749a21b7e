"""What datasets in Lance have in common: rows by id, and the errors of reading and writing as sentences."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lance

from phantom_s2v.errors import DataError, OutputError
from phantom_s2v.files.io import locked


def first_line(error: Exception) -> str:
    """The first line of what Lance says, without the places in its source."""
    return re.sub(r",? ?\S+\.rs:\d+(:\d+)?", "", str(error).splitlines()[0])


class LanceStore:
    """A Lance dataset with a column of ids."""

    path: Path
    dataset: lance.LanceDataset

    def __len__(self) -> int:
        return self.dataset.count_rows()

    def ids(self) -> list[str]:
        """Ids of all rows, in the store's order."""
        with self._reading():
            return self.dataset.to_table(columns=["id"]).column("id").to_pylist()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the store alone, at its newest version before and after. Raises OutputError where Lance cannot write."""
        with locked(self.path):
            try:
                self.dataset = lance.dataset(str(self.path))
                yield
                self.dataset = lance.dataset(str(self.path))
            except (OSError, RuntimeError) as error:
                raise OutputError(
                    f"{self.path} cannot be written: {first_line(error)}; the existing data is unchanged"
                ) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raises DataError where Lance cannot read."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.path} is damaged ({first_line(error)})") from error
