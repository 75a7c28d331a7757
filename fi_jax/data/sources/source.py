"""What a data source is: faces with their splits, what was left out and why, and what was mended."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fi_jax.data.records import FaceRecord, Rejected
from fi_jax.data.splits import select
from fi_jax.errors import UserError


class Source(Protocol):
    """One data set under one root."""

    @property
    def name(self) -> str:
        """The data set's name."""
        ...

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Rows and files that were left out, each with the reason."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was mended on reading (a stripped path prefix, "9-Mar" read as "3-9"), in words."""
        ...

    def records(self, split: str) -> list[FaceRecord]:
        """Returns the faces of a split, always in the same order."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """A release read from its own folder. `faces` are in order of their keys."""

    name: str
    root: Path
    faces: tuple[FaceRecord, ...]
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()

    def records(self, split: str = "all") -> list[FaceRecord]:
        """Returns the faces of a split, in order of their keys."""
        return select(self.faces, split)


@dataclass
class Findings:
    """Collects, while a release is read, what is left out and what is mended."""

    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def reject(self, key: str, reason: str) -> None:
        """Leaves `key` out for `reason`."""
        self.rejected.append(Rejected(key, reason))

    def note(self, text: str) -> None:
        """Records, once, that something was mended."""
        if text not in self.notes:
            self.notes.append(text)

    def source(self, name: str, root: Path, faces: list[FaceRecord]) -> FolderSource:
        """Returns the finished source; a root without a single usable face is a `UserError`."""
        if not faces:
            first = f"; the first of {len(self.rejected)} rejected: {self.rejected[0].key}, {self.rejected[0].reason}"
            raise UserError(f"{name}: no usable face under '{root}'{first if self.rejected else ''}")
        ordered = tuple(sorted(faces, key=lambda record: record.key))
        return FolderSource(name, root, ordered, tuple(self.rejected), tuple(self.notes))
