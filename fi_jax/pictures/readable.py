"""What a picture is read from, and the box around a part of it."""

from typing import Protocol

Box = tuple[float, float, float, float]


class Readable(Protocol):
    """Whatever gives the bytes of a file: a `pathlib.Path`, a record in a shard, a face drawn on demand."""

    def read_bytes(self) -> bytes:
        """Returns the whole file."""
        ...
