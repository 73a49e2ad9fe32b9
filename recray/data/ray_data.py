"""The two ends of ingest on Ray Data: the source of ratings, and the sink of the data set's files.

No rating passes through Ray's object store: between the tasks ratings lie in spill files, and a
block of Ray Data holds what a task has counted.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data import Datasink, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from recray.data.encode import EncodedCounts
from recray.data.formats.layout import FileRange
from recray.data.scan import scan
from recray.data.spill import SpillFolder
from recray.runtime.tasks import OUTCOMES, outcome, outcome_table, results_of

if TYPE_CHECKING:
    from ray.data.datasource import WriteResult


class RatingsSource(Datasource):
    """Ratings files as a source of Ray Data: a read task for each file range.

    A read task parses its range chunk by chunk and spills the rows by the slots of their users. So
    it never holds more than one run of rows, whatever the size of the file. Its one block is the
    outcome of scan.scan.

    Args:
        numbers: The ranges that are read, as places in `ranges`.
        ranges: All file ranges.
        spill: Where spill files go; a task that is done again writes the same ones.
    """

    def __init__(
        self, numbers: Sequence[int], ranges: Sequence[FileRange], spill: SpillFolder
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ranges = [ranges[number] for number in numbers]
        self.scans = [partial(scan, n, file_range=ranges[n], spill=spill) for n in numbers]

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before the ranges are read, and next to nothing: the blocks are counts."""
        return None

    def get_read_tasks(self, *_wished: object, **_limits: object) -> list[ReadTask]:
        """A task for each range, in their order, however many Ray Data wishes."""
        return [
            ReadTask(partial(_read, place, task), _counts_of(file_range), OUTCOMES)
            for place, (file_range, task) in enumerate(zip(self.ranges, self.scans, strict=True))
        ]


def _read(place: int, task: Callable[[], object]) -> Iterable[pa.Table]:
    yield outcome_table(place, task)


def _counts_of(file_range: FileRange) -> BlockMetadata:
    """What Ray Data knows of the block of a range before it is read."""
    paths = (file_range.file.path,)
    return BlockMetadata(num_rows=1, size_bytes=None, exec_stats=None, input_files=paths)


class PartitionsSink(Datasink[list[tuple[int, bytes]]]):
    """The files of a data set as a sink of Ray Data, which takes the numbers of partitions.

    A write task reads its partition from the spill files and writes the files of it, under names
    that follow from its number: a task that is done again writes the same ones.

    Args:
        encode: Writes the files of a partition, as encode.encode.

    Attributes:
        shared: Reference to the arguments that all calls of `encode` need.
        results: Of each partition, by its number, what its files hold; set at the end.
    """

    def __init__(self, encode: Callable[..., EncodedCounts]) -> None:
        self.encode = encode
        self.shared: Any = None
        self.results: list[EncodedCounts] = []

    def write(self, blocks: Iterable[pa.Table], ctx: object) -> list[tuple[int, bytes]]:
        """Write the files of partitions; return their numbers and the outcomes."""
        known = ray.get(self.shared)
        numbers = [number for block in blocks for number in block["id"].to_pylist()]
        return [(n, outcome(partial(self.encode, n, **known))) for n in numbers]

    def on_write_complete(self, write_result: "WriteResult[list[tuple[int, bytes]]]") -> None:
        """Take what the tasks returned.

        Raises:
            RecrayError: What the first partition that failed raised for the user.
        """
        self.results = results_of(pair for pairs in write_result.write_returns for pair in pairs)
