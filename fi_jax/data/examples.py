"""Turns a FaceRecord into the arrays of one example, and finds out beforehand which records can be read."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from fi_jax.data.kept import kept_json
from fi_jax.data.records import FaceRecord, Rejected, encode_labels
from fi_jax.errors import UserError
from fi_jax.faces.framing import align_face
from fi_jax.faces.map_cache import load_mask, refuse_mirrored
from fi_jax.files import sha256
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.pictures.crop import load_square
from fi_jax.pictures.decode import picture_size
from fi_jax.pictures.header import read_bytes
from fi_jax.progress import progress_bar

# Changes when the readers of pictures and maps accept or refuse others, so that older findings are not used.
_READERS = "readers 2"


def make_example(
    record: FaceRecord,
    vocabulary: Vocabulary,
    size: int,
    mask_cache: Path | None = None,
    frame: Literal["box", "aligned"] = "box",
) -> dict[str, np.ndarray]:
    """Returns `image` (`size size 3` uint8), `mask` (`size size` uint8), `labels` (`n` float32), `known` (`n` bool).

    `frame` is `data.frame` (`faces.framing`).

    Raises:
      UserError: the picture or its map cannot be read.
    """
    labels, known = encode_labels(record, vocabulary)
    name = f"{record.dataset} {record.key}" if isinstance(record.image, bytes) else str(record.image)
    picture = read_bytes(record.image, name)
    if frame == "box":
        image, mask = load_square(picture, record.box, size, name), load_mask(record, size, mask_cache, picture)
    else:
        own = load_mask(record, None, mask_cache, picture)
        shape = picture_size(picture, name)
        image, mask, _ = align_face(partial(load_square, picture, name=name), own, record.box, shape, size)
    return {"image": image, "mask": mask, "labels": labels, "known": known}


def examine(
    records: Sequence[FaceRecord], max_unreadable: float = 1.0, threads: int = 4
) -> tuple[list[FaceRecord], list[Rejected]]:
    """Decodes every picture (and own map) once and returns `(readable records, the others with reasons)`.

    What was found is cached by the files' names, sizes and times, so a second run only looks at those.

    Raises:
      UserError: the unreadable share is above `max_unreadable`; the message names the first.
    """

    def find() -> dict[str, str]:
        with ThreadPoolExecutor(threads) as pool, progress_bar("checking pictures", len(records)) as advance:
            found = {}
            for record, reason in zip(records, pool.map(_problem, records), strict=True):
                if reason:
                    found[_name(record)] = reason
                advance()
        refuse_mirrored([record for record in records if _name(record) not in found])
        return found

    reasons = kept_json("examined", [_READERS, *map(stamp, records)], find)
    unreadable = [Rejected(_name(record), reasons[_name(record)]) for record in records if _name(record) in reasons]
    if len(unreadable) > max_unreadable * len(records):
        raise UserError(
            f"{len(unreadable)} of {len(records)} faces cannot be read, more than data.max_unreadable "
            f"{max_unreadable:g} allows; the first: {unreadable[0].key}: {unreadable[0].reason}"
        )
    return [record for record in records if _name(record) not in reasons], unreadable


def _name(record: FaceRecord) -> str:
    return f"{record.dataset}/{record.key}"


def _problem(record: FaceRecord) -> str:
    try:
        load_square(record.image, record.box, 32, record.key)
        if record.mask is not None:
            load_mask(record, 32)
    except UserError as error:
        return str(error)
    return ""


def stamp(record: FaceRecord, times: bool = True) -> str:
    """Returns a line that changes when a record's picture, map or box does, told by the files' sizes (and times)."""
    parts = [_name(record), str(record.box)]
    for source in (record.image, record.mask):
        if isinstance(source, Path):
            try:
                stat = source.stat()
                parts.append(f"{source.name}:{stat.st_size}:{stat.st_mtime_ns if times else ''}")
            except OSError:
                parts.append("missing")
        elif isinstance(source, bytes):
            parts.append(sha256(source))
        else:
            parts.append(str(source))
    return "\t".join(parts)


def fingerprint(records: Sequence[FaceRecord], times: bool = False) -> str:
    """Returns a hash that changes when a face is added, removed, relabelled or replaced, but not with its folder.

    Pictures are told by their names and sizes; with `times` also by when they were changed.
    """
    digest = hashlib.sha256()
    for record in records:
        labels = sorted(record.labels.items())
        known = f"{record.split}\t{labels}\t{record.age}\t{record.identity}{sorted(record.numbers.items()) or ''}"
        digest.update(f"{stamp(record, times)}\t{known}\n".encode())
    return digest.hexdigest()
