"""Writes a release as a prepared folder: shards, co-occurrence counts, and a manifest of what was left out and why."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fi_jax.data import examples, shards
from fi_jax.data.counts import count_records
from fi_jax.data.datasets import find_dataset
from fi_jax.data.processes import in_processes
from fi_jax.data.records import SPLITS, FaceRecord, Source
from fi_jax.errors import UserError
from fi_jax.faces.map_cache import cached_map
from fi_jax.files import file_sha256, read_json, sha256, write_bytes
from fi_jax.knowledge.graph_file import graph_bytes
from fi_jax.pictures.header import read_bytes
from fi_jax.progress import progress_bar

COUNTS = "counts.npz"
FACES_PER_SHARD = 2048
_CLAIM = ".preparing.json"


@dataclass(frozen=True)
class Maps:
    """The parser's maps of faces whose set has none: `faces.map_cache`'s folder, and what makes missing ones in it."""

    folder: Path
    make: Callable[[Sequence[FaceRecord]], object]


def prepare(
    source: Source,
    out: Path,
    maps: Maps | None = None,
    faces_per_shard: int = FACES_PER_SHARD,
    part: tuple[int, int] = (0, 1),
    workers: int = 1,
) -> tuple[dict | None, bool]:
    """Writes `source` under `out` and returns `(manifest, whether anything was done)`.

    It can be stopped at any moment and started again: maps and shards that are there are kept, if they were made from
    the same faces. Once the manifest is there, it only compares. With `part` `(i, n)` only the i-th of every n shards
    is written (on n hosts, say); whoever finds all shards written adds the counts and the manifest, and until then
    the manifest is None. `workers` processes write shards.

    Raises:
      UserError: `out` holds another data set, or one made from other files or with other settings.
    """
    out = Path(out)
    faces = source.records("all")
    readable, unreadable = examples.examine(faces)
    if not readable:
        raise UserError(f"{source.name}: none of {len(faces)} pictures can be read; the first: {unreadable[0].reason}")
    settings = f"{shards.FORMAT} {source.name} {maps.folder.name if maps else ''} {faces_per_shard}"
    fingerprint = sha256(f"{settings} {examples.fingerprint(readable)}")
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
    starts = range(0, len(readable), faces_per_shard)
    jobs = {
        out / f"faces-{number:05d}.array_record": readable[start : start + faces_per_shard]
        for number, start in enumerate(starts)
    }
    mine = {
        path: faces for i, (path, faces) in enumerate(jobs.items()) if i % part[1] == part[0] and _written(path) is None
    }
    if maps:
        maps.make([face for faces in mine.values() for face in faces if face.mask is None])
    _write_shards(source.name, mine, names, maps.folder if maps else None, workers)
    entries = [_written(path) for path in jobs]
    if None in entries:
        return None, True
    manifest = _manifest(source, readable, unreadable, names, out) | {"fingerprint": fingerprint, "shards": entries}
    write_bytes(out / shards.MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    # The claim, and what a killed run left half-written; the folder was empty before the first of them.
    for leftover in out.glob(".*"):
        leftover.unlink(missing_ok=True)
    return manifest, True


def _manifest(source: Source, readable: Sequence[FaceRecord], unreadable, names: Sequence[str], out: Path) -> dict:
    """Writes the counts of the train split, and returns what the manifest says about the faces."""
    vocabulary = find_dataset(source.name).vocabulary
    counts = count_records((face for face in readable if face.split == "train"), vocabulary)
    write_bytes(out / COUNTS, graph_bytes(vocabulary.names, counts))
    rejected = defaultdict(list)
    for item in (*source.rejected, *unreadable):
        rejected[item.reason].append(item.key.removeprefix(f"{source.name}/"))
    return {
        "format": shards.FORMAT,
        "dataset": source.name,
        "faces": len(readable),
        "splits": {split: Counter(face.split for face in readable)[split] for split in SPLITS},
        "labels": names,
        "vocabulary": vocabulary.name,
        "counts": {"file": COUNTS, "sha256": file_sha256(out / COUNTS)},
        "notes": list(source.notes),
        "num_rejected": len(source.rejected) + len(unreadable),
        "rejected": dict(rejected),
    }


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


def _write_shards(
    name: str, jobs: dict[Path, list[FaceRecord]], names: Sequence[str], maps: Path | None, workers: int
) -> None:
    with progress_bar(f"{name}: writing shards", sum(map(len, jobs.values()))) as advance:
        if min(workers, len(jobs)) < 2:
            for path, faces in jobs.items():
                _write_one(path, faces, names, maps)
                advance(len(faces))
            return
        parts = [(path, faces, names, maps) for path, faces in jobs.items()]
        for index in in_processes(_write_one, parts, workers):
            advance(len(parts[index][1]))


def _written(path: Path) -> dict | None:
    """Returns a shard's entry in the manifest if it was written whole: its index comes last."""
    index_path = path.with_suffix(".json")
    if not index_path.exists() or not path.exists():
        return None
    try:
        index = read_json(index_path)
    except UserError:  # Damaged: the shard is written anew.
        return None
    entry = index.get("entry") if isinstance(index, dict) else None
    return entry if isinstance(entry, dict) and entry.get("bytes") == path.stat().st_size else None


def _write_one(path: Path, faces: Sequence[FaceRecord], names: Sequence[str], maps: Path | None) -> None:
    """Writes a shard and, last, its index."""
    headers = []

    def packed() -> Iterator[bytes]:
        for face in faces:
            image = read_bytes(face.image, face.key)
            mask, is_crop = b"", False
            if face.mask is not None:
                mask, is_crop = read_bytes(face.mask, face.key), bool(getattr(face.mask, "is_crop", False))
            elif maps:
                mask, is_crop = read_bytes(Path(cached_map(maps, image, face.box))), True
            headers.append(shards.header_of(face, image, mask, is_crop))
            yield shards.pack(headers[-1], image, mask)

    shards.write_shard(path, packed())
    entry = {"file": path.name, "faces": len(faces), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    index = shards.index_of(headers, names) | {"entry": entry}
    write_bytes(path.with_suffix(".json"), json.dumps(index, ensure_ascii=False).encode())
