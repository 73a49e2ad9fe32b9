"""Tables as bytes: equal tables give equal bytes."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_bytes(table: pa.Table, few: Sequence[str] | None = None) -> bytes:
    """The table as parquet; equal tables give equal bytes.

    Args:
        table: What to write.
        few: Columns of few distinct values, worth a dictionary; None tries every column.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.combine_chunks(),
        sink,
        compression="zstd",
        version="2.6",
        use_dictionary=True if few is None else list(few),
    )
    return bytes(sink.getvalue().to_pybytes())
