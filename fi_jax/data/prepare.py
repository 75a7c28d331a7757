"""Writes a release as a prepared folder: shards, co-occurrence counts, and a manifest of what was left out and why."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from fi_jax.data import examples, shards
from fi_jax.data.counts import count_records
from fi_jax.data.datasets import find_dataset
from fi_jax.data.records import SPLITS, FaceRecord, Source
from fi_jax.errors import UserError
from fi_jax.faces.map_cache import cached_map
from fi_jax.files import file_sha256, read_json, write_bytes
from fi_jax.knowledge.graph_file import graph_bytes
from fi_jax.pictures.header import read_bytes
from fi_jax.progress import progress_bar

COUNTS = "counts.npz"
FACES_PER_SHARD = 2048
_CLAIM = ".preparing.json"


def prepare(
    source: Source, out: Path, maps: Path | None = None, faces_per_shard: int = FACES_PER_SHARD
) -> tuple[dict, bool]:
    """Writes `source` under `out` and returns `(manifest, whether anything was done)`.

    `maps` is the folder with the parser's maps (`faces.map_cache.with_maps`) of faces whose set has none. It can be
    stopped at any moment and started again: shards that are there are kept, if they were made from the same faces.
    Once the manifest is there, it only compares.

    Raises:
      UserError: `out` holds another data set, or one made from other files or with other settings.
    """
    out = Path(out)
    faces = source.records("all")
    readable, unreadable = examples.examine(faces)
    if not readable:
        raise UserError(f"{source.name}: none of {len(faces)} pictures can be read; the first: {unreadable[0].reason}")
    fingerprint = _fingerprint(source, readable, maps.name if maps else "", faces_per_shard)
    if (out / shards.MANIFEST).exists():
        manifest = shards.read_manifest(out)
        if manifest.get("fingerprint") != fingerprint:
            raise UserError(
                f"'{out}' was prepared from other files or with other settings; give another --out, or delete it"
            )
        shards.read(source.name, out)
        return manifest, False
    _claim(out, source.name, fingerprint)
    names = sorted({name for face in readable for name in face.labels})
    entries = []
    with progress_bar(f"{source.name}: writing shards", len(readable)) as advance:
        for number, start in enumerate(range(0, len(readable), faces_per_shard)):
            part = readable[start : start + faces_per_shard]
            entries.append(_write_one(out / f"faces-{number:05d}.array_record", part, names, maps))
            advance(len(part))
    vocabulary = find_dataset(source.name).vocabulary
    counts = count_records((face for face in readable if face.split == "train"), vocabulary)
    write_bytes(out / COUNTS, graph_bytes(vocabulary.names, counts))
    rejected = defaultdict(list)
    for item in (*source.rejected, *unreadable):
        rejected[item.reason].append(item.key.removeprefix(f"{source.name}/"))
    manifest = {
        "format": shards.FORMAT,
        "dataset": source.name,
        "fingerprint": fingerprint,
        "faces": len(readable),
        "splits": {split: Counter(face.split for face in readable)[split] for split in SPLITS},
        "labels": names,
        "vocabulary": vocabulary.name,
        "counts": {"file": COUNTS, "sha256": file_sha256(out / COUNTS)},
        "shards": entries,
        "notes": list(source.notes),
        "num_rejected": len(source.rejected) + len(unreadable),
        "rejected": dict(rejected),
    }
    write_bytes(out / shards.MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    # The claim, and what a killed run left half-written; the folder was empty before the first of them.
    for leftover in out.glob(".*"):
        leftover.unlink()
    return manifest, True


def _claim(out: Path, dataset: str, fingerprint: str) -> None:
    """Notes for whom shards are being written, so that an interrupted run is only continued by its like."""
    path = out / _CLAIM
    claim = {"dataset": dataset, "fingerprint": fingerprint}
    if path.exists():
        if read_json(path, f"delete '{out}'") != claim:
            raise UserError(f"'{out}' is half-written from other files or with other settings; delete it")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"'{out}' is not empty; give --out a new or empty folder")
    else:
        write_bytes(path, json.dumps(claim).encode())


def _write_one(path: Path, faces: Sequence[FaceRecord], names: Sequence[str], maps: Path | None) -> dict:
    """Writes a shard and its index, unless the index, which comes last, is there already."""
    index_path = path.with_suffix(".json")
    if index_path.exists() and path.exists():
        entry = read_json(index_path, f"delete '{path.parent}'")["entry"]
        if path.stat().st_size == entry["bytes"]:
            return entry
    packed = []
    for face in faces:
        image = read_bytes(face.image, face.key)
        if face.mask is not None:
            mask, is_crop = read_bytes(face.mask, face.key), bool(getattr(face.mask, "is_crop", False))
        else:
            mask, is_crop = (read_bytes(Path(cached_map(maps, image, face.box))), True) if maps else (b"", False)
        packed.append(shards.pack(face, image, mask, is_crop))
    shards.write_shard(path, packed)
    entry = {"file": path.name, "faces": len(faces), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    index = shards.index_of([shards.unpack(record)[0] for record in packed], names) | {"entry": entry}
    write_bytes(index_path, json.dumps(index, ensure_ascii=False).encode())
    return entry


def _fingerprint(source: Source, faces: Sequence[FaceRecord], map_identity: str, faces_per_shard: int) -> str:
    digest = hashlib.sha256(f"{shards.FORMAT} {source.name} {map_identity} {faces_per_shard}\n".encode())
    for face in faces:
        labels = sorted(face.labels.items())
        digest.update(
            f"{examples.stamp(face, times=False)}\t{face.split}\t{labels}\t{face.age}\t{face.identity}\n".encode()
        )
    return digest.hexdigest()
