"""Images in a column of a parquet file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from bench.errors import UsageError
from bench.images import Bytes, Decoded, decode
from solvers import Option, did_you_mean

ROWS = 1000  # held at a time


class ParquetImages(Decoded):
    """The encoded images in a column of a parquet file: of bytes, or of Hugging Face's {bytes, path}.

    `where` keeps the rows in which the columns have these values; without `column`, the only one that can be is taken.
    """

    def __init__(self, path: Path, where: Mapping[str, Option] | None = None, column: str = "", name: str = "") -> None:
        self.path = path
        with _reading(path):
            self.table = ds.dataset(path, format="parquet")
        schema = self.table.schema
        if column and column not in schema.names:
            raise did_you_mean(f"column of {path}", column, schema.names)
        holding = [field.name for field in schema if _holds_bytes(field.type)]
        if not column and len(holding) != 1:
            has = f"several columns of bytes: choose one, {path}(images={holding[0]})" if holding else "no image column"
            raise UsageError(f"{path} has {has}; its columns: {', '.join(schema.names)}")
        self.column = column or holding[0]
        if self.column not in holding:
            raise UsageError(f"{path}: column {column!r} holds {schema.field(column).type}, not images' bytes")
        self.filter = _rows(path, schema, where or {})
        with _reading(path):
            self.count = self.table.count_rows(filter=self.filter)
        if where and not self.count:
            raise UsageError(f"{name or path}: no row has {', '.join(f'{k}={v}' for k, v in where.items())}")
        about = [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns, self.column, str(self.filter)]
        super().__init__(name or str(path), about)

    def __len__(self) -> int:
        return self.count

    def _each(self) -> Iterator[tuple[str, Bytes]]:
        for row, value in enumerate(self._values()):
            data, label = value["bytes"] if isinstance(value, dict) else value, f"{self.name} image {row}"
            if data is None:
                raise UsageError(f"{label} is empty: the file must hold the images' bytes, not their paths alone")
            yield label, decode(label, BytesIO(data))

    def _values(self) -> Iterator[Any]:
        with _reading(self.path):
            for batch in self.table.to_batches([self.column], self.filter, ROWS, batch_readahead=1):
                yield from (value.as_py() for value in batch.column(0))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _rows(path: Path, schema: pa.Schema, where: Mapping[str, Option]) -> ds.Expression | None:
    """Which rows have these values, read as the columns' own types; None for all."""
    chosen = None
    for column, value in where.items():
        if column not in schema.names:
            raise did_you_mean(f"column of {path}", column, schema.names)
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        try:
            same = pc.field(column) == pa.scalar(value).cast(kind)
        except pa.ArrowException as error:
            raise UsageError(f"{path}: column {column!r} holds {kind}, not {value!r}") from error
        chosen = same if chosen is None else chosen & same
    return chosen
