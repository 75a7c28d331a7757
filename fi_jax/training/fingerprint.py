"""What a run was trained on, in a few digests: the same faces under another root have the same ones."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fi_jax.data.records import FaceRecord
from fi_jax.files import sha256

# Parts of a record that have a digest each, and what a difference means.
_PARTS = {
    "names": "other faces, or in another order",
    "labels": "other labels or boxes",
    "pictures": "pictures or maps of another size",
}


def fingerprint(records: Sequence[FaceRecord]) -> dict[str, dict[str, Any]]:
    """Returns how many faces each data set has, and digests of their names, labels and pictures (JSON).

    Files count by their size: neither their folder nor their time matters.
    """
    sets = dict.fromkeys(record.dataset for record in records)
    size = cache(_size)
    made = {}
    for name in sets:
        faces = [record for record in records if record.dataset == name]
        made[name] = {
            "faces": len(faces),
            "names": _digest(face.key for face in faces),
            "labels": _digest((sorted(face.labels.items()), face.age, face.box) for face in faces),
            "pictures": _digest((_content(face.image, size), _content(face.mask, size)) for face in faces),
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


def _content(source: Any, size) -> Any:
    """What tells a picture apart without its folder: its bytes, or its file's size, and its place in that file."""
    if source is None or isinstance(source, bytes):
        return source and sha256(source)
    values = [source] if isinstance(source, Path) else vars(source).values()
    return [size(value) if isinstance(value, Path) else value for value in values if isinstance(value, int | Path)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
