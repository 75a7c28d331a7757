"""Prepared data sets: ArrayRecord shards of faces, a small index beside each, and a manifest over all.

A record is a 4-byte little-endian length, a JSON header of that length, then the bytes of the image file
and those of the map, untouched. `faces-00000.json` repeats what is needed to list a shard's faces without
reading it. The manifest is written last: a folder without one is unfinished.
"""

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fi_jax.data.records import SPLITS, FaceRecord, Rejected, Source
from fi_jax.data.sources.attributes import AttributeRow
from fi_jax.errors import UserError
from fi_jax.files import atomic_path, inside, read_json

MANIFEST = "manifest.json"
FORMAT = "fi_jax faces 1"
# ArrayRecord's group size 1 makes every face readable alone; images do not compress further.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# How an index writes a label: true, false, unknown.
_CODES = {True: "1", False: "0", None: "?"}
# What a file of another shape raises while it is taken apart.
_MISSHAPEN = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class InShard:
    """The image or map of one face of a shard, read when asked for."""

    path: Path
    index: int
    part: str

    def read_bytes(self) -> bytes:
        """Returns the bytes of the file as they were when the shard was made; a damaged shard is a `UserError`."""
        try:
            _, image, mask = unpack(_reader(str(self.path)).read([self.index])[0])
        except (*_MISSHAPEN, IndexError, RuntimeError, struct.error) as error:
            raise UserError(f"shard '{self.path}' is damaged at face {self.index} ({str(error)[:80]})") from None
        return image if self.part == "image" else mask

    def __str__(self) -> str:
        return f"{self.path.name} ({_size(self.path)} bytes), face {self.index} ({self.part})"

    @property
    def is_crop(self) -> bool:
        """Whether the map has the geometry of the face's crop (the parser made it), not of the picture."""
        return self.part == "crop_mask"


@lru_cache(maxsize=4096)
def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


@lru_cache(maxsize=256)
def _reader(path: str):
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, "readahead_buffer_size:0")


def header_of(record: FaceRecord, image: bytes, mask: bytes, mask_is_crop: bool = False) -> dict:
    """Returns what a shard says about one face."""
    return {
        "dataset": record.dataset,
        "key": record.key,
        "split": record.split,
        "labels": {name: bool(value) for name, value in record.labels.items()},
        "age": record.age,
        "box": record.box,
        "identity": record.identity,
        "image_bytes": len(image),
        "mask_bytes": len(mask),
        "mask_is_crop": mask_is_crop,
    }


def pack(header: dict, image: bytes, mask: bytes) -> bytes:
    """Returns one face as the bytes of a shard's record."""
    head = json.dumps(header, ensure_ascii=False).encode()
    return struct.pack("<I", len(head)) + head + image + mask


def unpack(data: bytes) -> tuple[dict, bytes, bytes]:
    """Returns header, image bytes and map bytes of a shard's record."""
    (length,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + length])
    start = 4 + length
    middle = start + header["image_bytes"]
    return header, data[start:middle], data[middle : middle + header["mask_bytes"]]


def write_shard(path: Path, records: Iterable[bytes]) -> None:
    """Writes an ArrayRecord file; it appears whole or not at all."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    count = 0
    with atomic_path(path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
            for record in records:
                writer.write(record)
                count += 1
            writer.close()
            # The writer may say nothing about a disk that is full.
            complete = ArrayRecordReader(str(temporary), "readahead_buffer_size:0").num_records() == count
        except (RuntimeError, ValueError) as error:
            raise UserError(f"cannot write '{path}' ({str(error)[:80]}); is the disk full?") from None
        if not complete:
            raise UserError(f"cannot write '{path}' whole; is the disk full?")


def index_of(headers: Sequence[dict], label_names: Sequence[str]) -> dict:
    """Returns a shard's index: a row a face, its labels one character each in the order of `label_names`."""
    rows = []
    for header in headers:
        labels = "".join(_CODES[header["labels"].get(name)] for name in label_names)
        kind = "" if not header["mask_bytes"] else "crop_mask" if header["mask_is_crop"] else "mask"
        rows.append([header["key"], header["split"], labels, header["age"], header["box"], header["identity"], kind])
    return {"label_names": list(label_names), "rows": rows}


def is_prepared(root: Path | str) -> bool:
    """Whether `root` is a folder that `fi-jax prepare` wrote, finished or not."""
    root = Path(root)
    return (root / MANIFEST).is_file() or any(root.glob("faces-*.array_record"))


def read_manifest(root: Path) -> dict:
    """Returns the manifest; a missing or damaged one is a `UserError`."""
    path = Path(root) / MANIFEST
    if not path.exists():
        raise UserError(f"'{root}' is not finished (no {MANIFEST}); run the same `fi-jax prepare` again")
    manifest = read_json(path, "delete it and run `fi-jax prepare` again")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"'{path}' is not a manifest of this version ('{FORMAT}'); prepare the set again")
    return manifest


def read(name: str, root: Path) -> Source:
    """Opens a prepared folder as a source, with the same faces in the same order as the release it was made from.

    Raises:
      UserError: the folder is unfinished, of another data set, or a shard is missing, damaged or cut short.
    """
    root = Path(root)
    manifest = read_manifest(root)
    try:
        if manifest["dataset"] != name:
            raise UserError(f"'{root}' holds the data set '{manifest['dataset']}', not '{name}'")
        paths = [(inside(root, shard["file"]), shard["bytes"]) for shard in manifest["shards"]]
        rejected = tuple(Rejected(key, reason) for reason, keys in manifest["rejected"].items() for key in keys)
        notes = tuple(map(str, manifest["notes"]))
    except _MISSHAPEN:
        raise UserError(f"'{root / MANIFEST}' is damaged; delete it and run `fi-jax prepare` again") from None
    faces: list[FaceRecord] = []
    for path, size in paths:
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"shard '{path}' is missing or cut short; delete {MANIFEST} and run `fi-jax prepare` again")
        index_path = path.with_suffix(".json")
        index = read_json(index_path, "prepare the set again")
        try:
            faces += _faces(name, path, index)
        except _MISSHAPEN:
            raise UserError(f"'{index_path}' is damaged; prepare the set again") from None
    return Source(name, tuple(faces), rejected, notes)


def _faces(dataset: str, path: Path, index: dict) -> list[FaceRecord]:
    names = tuple(map(str, index["label_names"]))
    faces = []
    for i, (key, split, codes, age, box, identity, mask) in enumerate(index["rows"]):
        # Checked here, since the fields are used far from here.
        _check(isinstance(key, str) and split in SPLITS and len(codes) == len(names))
        _check(mask in ("", "mask", "crop_mask") and (identity is None or isinstance(identity, str)))
        face_age = None if age is None else float(age)
        face_box = None
        if box is not None:
            left, top, right, bottom = map(float, box)
            face_box = (left, top, right, bottom)
        image, map_ = InShard(path, i, "image"), InShard(path, i, mask) if mask else None
        labels = AttributeRow(names, codes.encode("ascii"))
        faces.append(FaceRecord(dataset, key, split, image, labels, face_age, face_box, map_, identity))
    return faces


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError
