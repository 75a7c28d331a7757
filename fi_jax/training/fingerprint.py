"""What a run was trained on, in a few digests: the same faces under another root have the same ones."""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fi_jax.data.records import FaceRecord
from fi_jax.files import sha256

# Bytes that are read at each of three places of a file.
_PIECE = 4096
# Parts of a record that have a digest each, and what a difference means.
_PARTS = {
    "names": "other faces, or in another order",
    "labels": "other labels or boxes",
    "pictures": "other pictures or maps",
}


def fingerprint(records: Sequence[FaceRecord]) -> dict[str, dict[str, Any]]:
    """Returns how many faces each data set has, and digests of their names, labels and pictures (JSON).

    A file counts by its size and by three pieces of it (start, middle, end), so that a set of many is not read whole:
    neither its folder nor its time matters.
    """
    sets = dict.fromkeys(record.dataset for record in records)
    look = cache(_look)
    made = {}
    for name in sets:
        faces = [record for record in records if record.dataset == name]
        made[name] = {
            "faces": len(faces),
            "names": _digest(face.key for face in faces),
            "labels": _digest((sorted(face.labels.items()), face.age, face.box, *face.texts) for face in faces),
            "pictures": _digest((_content(face.image, look), _content(face.mask, look)) for face in faces),
        }
    return made


def differences(then: dict[str, dict], now: dict[str, dict]) -> list[str]:
    """Says how the faces of two fingerprints differ, a line a data set."""
    found = []
    for name in dict.fromkeys((*then, *now)):
        a, b = then.get(name, {}), now.get(name, {})
        if a.get("faces") != b.get("faces"):
            found.append(f"{name} had {a.get('faces', 0)} faces and has {b.get('faces', 0)}")
        elif changed := [text for part, text in _PARTS.items() if a.get(part) != b.get(part)]:
            found.append(f"{name} has {' and '.join(changed)}")
    return found


def _digest(parts: Iterable[Any]) -> str:
    return sha256("\n".join(map(repr, parts)))


def _content(source: Any, look) -> Any:
    """What tells a picture apart without its folder: its bytes, or a look at its file, and its place in that file."""
    if source is None or isinstance(source, bytes):
        return source and sha256(source)
    values = [source] if isinstance(source, Path) else vars(source).values()
    return [look(value) if isinstance(value, Path) else value for value in values if isinstance(value, int | Path)]


def _look(path: Path) -> tuple[int, str]:
    try:
        with path.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            pieces = []
            for start in (0, size // 2, max(size - _PIECE, 0)):
                opened.seek(start)
                pieces.append(opened.read(_PIECE))
    except OSError:
        return -1, ""
    return size, sha256(b"".join(pieces))
