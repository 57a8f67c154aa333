"""Texts in Parquet files, the form in which the Hugging Face hub keeps datasets; read by Apache Arrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from llmkit.errors import DependencyError, FormatError

_ROWS: Final = 16  # at a time: a file of some bytes may hold the same long text a million times
_PREFERRED: Final = "text"


def read_column(path: Path) -> Iterator[str]:
    """The texts of a file, row by row: of the column `text`, or of the only one that holds texts; null as "".

    Raises FormatError for what is no Parquet file, or one without such a column; DependencyError without pyarrow.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DependencyError("pyarrow", "datasets", "reading datasets of the hub") from error
    try:
        with parquet.ParquetFile(path) as file:
            column = _column(path, pa, file.schema_arrow)
            for batch in file.iter_batches(_ROWS, columns=[column]):
                yield from (text.as_py() or "" for text in batch.column(0))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FormatError(path, f"is no Parquet file that can be read: {error}") from error


def _column(path: Path, pyarrow: Any, schema: Any) -> str:
    is_text = (pyarrow.types.is_string, pyarrow.types.is_large_string)
    found = [field.name for field in schema if any(check(field.type) for check in is_text)]
    if _PREFERRED in found:
        return _PREFERRED
    if len(found) == 1:
        return str(found[0])
    raise FormatError(path, f"has no column {_PREFERRED!r} of texts; its columns: {', '.join(schema.names[:20])}")
