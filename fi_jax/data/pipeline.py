"""Batches of faces through grain: which face stands where is a pure function of (seed, step).

The stream of examples is endless: epoch after epoch, each a fresh permutation. Global batch `s` is
places `s·b` to `(s+1)·b − 1` of the stream, so nothing is repeated or dropped at the end of an
epoch. Host `h` of `H` reads rows `h·b/H` to `(h+1)·b/H − 1` of every global batch: starting at
another step, or with another number of hosts, changes nothing but who reads what.

grain gives the random-access source, the start at a step, threads, prefetching and worker processes. The order is ours:
grain's `shuffle`, `repeat` and `batch` cost 20 to 30 µs of Python a face (measured in benchmarks/README.md).
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import grain
import numpy as np
from jaxtyping import Int, UInt8

from fi_jax.config import DataConfig, SourceConfig
from fi_jax.data import examples
from fi_jax.data.datasets import open_source
from fi_jax.data.processes import end_with_parent
from fi_jax.data.records import FaceRecord, Rejected, Source, by_reason
from fi_jax.data.splits import hash_fraction, limited
from fi_jax.errors import UserError
from fi_jax.labels.tasks import GENDER
from fi_jax.labels.vocabulary import Vocabulary

Batch = dict[str, np.ndarray]
# Called on every finished batch of this host, with the global step; must be a pure function of both.
Transform = Callable[[Batch, int], Batch]
# Makes the maps of faces that have none yet.
MakeMaps = Callable[[Sequence[FaceRecord]], None]

# Threads of the one pass over a set that checks it or keeps it in memory.
_PASS_THREADS = max(4, os.cpu_count() or 1)
# Threads that decode batches, where no worker processes are asked for. Decoding leaves Python's lock, all around it does
# not: a third thread makes the others wait more than it decodes (benchmarks/README.md).
_THREADS = 2
_PREFETCH = 4
# Smaller arrays come from a worker through its pipe: a block of shared memory costs more than copying them.
_SHARED_BYTES = 1 << 16
# Steps a stream can have; a number, since grain wants a length.
_ENDLESS = 1 << 40


@dataclass(frozen=True)
class Mixture:
    """The faces of several sets, each once, and which of them make up an epoch."""

    records: tuple[FaceRecord, ...]
    # Indices into `records`; a set with `repeat` k is there k times.
    epoch: Int[np.ndarray, "m"]
    unreadable: tuple[Rejected, ...] = ()
    # What was left out or corrected when the sets were read, in words a person can act on.
    notes: tuple[str, ...] = ()
    # Faces of the sets' validation splits, which are never trained on.
    validation: tuple[FaceRecord, ...] = ()


@dataclass(frozen=True)
class OpenedSet:
    """A set whose annotations were read, and no picture yet."""

    given: SourceConfig
    source: Source
    faces: list[FaceRecord]


def open_sets(config: DataConfig) -> list[OpenedSet]:
    """Reads the annotations of the sets of `config.sources`, at most `config.limit` faces of each.

    Raises:
      UserError: no set is given, one is not there, or its split is empty.
    """
    if not config.sources:
        raise UserError("data.sources is empty; name at least one data set")
    opened = []
    for given in config.sources:
        source = open_source(given.name, given.root)
        faces = limited(source.records(given.split), config.limit)
        if not faces:
            raise UserError(f"{given.name}: split '{given.split}' has no faces under '{given.root}'")
        opened.append(OpenedSet(given, source, [_without_attributes(face, config.withheld) for face in faces]))
    return opened


def validation_faces(opened: Sequence[OpenedSet], count: int) -> list[FaceRecord]:
    """At most `count` faces of each set's validation split.

    Raises:
      UserError: a set trains on its validation split, or no set has one.
    """
    faces: dict[str, FaceRecord] = {}
    for one in opened:
        if one.given.split in ("val", "all"):
            raise UserError(
                f"{one.given.name}: train.evaluate_every judges faces of split val, and split '{one.given.split}' "
                "trains on them; set its split to train"
            )
        faces |= {f"{face.dataset}/{face.key}": face for face in limited(one.source.records("val"), count)}
    if not faces:
        raise UserError("train.evaluate_every needs validation faces, and no data set has a split val")
    return list(faces.values())


def mix(opened: Sequence[OpenedSet], max_unreadable: float, validation: Sequence[FaceRecord] = ()) -> Mixture:
    """Looks at every picture once (what was found is cached); unreadable ones are left out and listed.

    Raises:
      UserError: more than `max_unreadable` of a set cannot be read.
    """
    records: list[FaceRecord] = []
    epoch, unreadable, notes = [], [], []
    for one in opened:
        readable, bad = examples.examine(one.faces, max_unreadable, _PASS_THREADS)
        unreadable += bad
        notes += [f"{one.given.name}: {note}" for note in one.source.notes]
        notes += [f"{one.given.name}: rejected: {line}" for line in by_reason(one.source.rejected)[:10]]
        epoch += [np.arange(len(records), len(records) + len(readable))] * one.given.repeat
        records += readable
    held_out, bad = examples.examine(validation, max_unreadable, _PASS_THREADS)
    return Mixture(tuple(records), np.concatenate(epoch), (*unreadable, *bad), tuple(notes), tuple(held_out))


def load_mixture(config: DataConfig) -> Mixture:
    """Opens and mixes the sets of `config.sources`. Errors are those of `open_sets` and `mix`."""
    return mix(open_sets(config), config.max_unreadable)


def _without_attributes(record: FaceRecord, share: float) -> FaceRecord:
    """`record`, for a `share` of all keys without its attributes; gender and what other tasks ask stay known."""
    if hash_fraction(record.key, "withheld") >= share:
        return record
    kept = {name: value for name, value in record.labels.items() if ":" in name or name in GENDER.labels}
    return replace(record, labels=kept)


class FaceDataset:
    """Random access to examples, decoded when asked for. Pickles cheaply, so that workers can have it."""

    def __init__(
        self,
        records: Sequence[FaceRecord],
        vocabulary: Vocabulary,
        size: int,
        mask_cache: Path | None = None,
        frame: Literal["box", "aligned"] = "box",
        make_maps: MakeMaps | None = None,
    ):
        """`size`: the side of the crops; `mask_cache`: where the parser's maps are (None: class 0); `frame`: as `data.frame`.

        `make_maps` makes the maps that are not there yet, when their faces are read.
        """
        self.records, self.vocabulary, self.size = tuple(records), vocabulary, size
        self.mask_cache, self.frame, self.make_maps = mask_cache, frame, make_maps

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self.records[index]
        return examples.make_example(record, self.vocabulary, self.size, self.mask_cache, self.frame)

    def gather(self, indices: Int[np.ndarray, "b"]) -> Batch:
        """Returns the examples at `indices`, stacked."""
        if self.make_maps:
            self.make_maps([self.records[int(index)] for index in indices])
        rows = [self[int(index)] for index in indices]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


class MemoryDataset(FaceDataset):
    """The same, each face kept in memory from its first use on: thousands of faces a second and core, `4·size²` bytes a face."""

    def __init__(self, records: Sequence[FaceRecord], vocabulary: Vocabulary, size: int, *given):
        super().__init__(records, vocabulary, size, *given)
        count, n = len(self.records), len(vocabulary)
        kinds: dict[str, tuple[tuple[int, ...], type]] = {
            "image": ((size, size, 3), np.uint8),
            "mask": ((size, size), np.uint8),
        }
        kinds |= {"labels": ((n,), np.float32), "known": ((n,), bool)}
        self._arrays: Batch = {key: np.empty((count, *shape), kind) for key, (shape, kind) in kinds.items()}
        self._is_read = np.zeros(count, bool)

    def _read(self, indices: Int[np.ndarray, "b"]) -> None:
        new = np.unique(indices[~self._is_read[indices]])
        if not len(new):
            return
        if self.make_maps:
            self.make_maps([self.records[index] for index in new])
        with ThreadPoolExecutor(_PASS_THREADS) as pool:
            for index, row in zip(new, pool.map(super().__getitem__, new), strict=True):
                for key, value in row.items():
                    self._arrays[key][index] = value
        self._is_read[new] = True

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {key: array[0] for key, array in self.gather(np.array([index])).items()}

    def gather(self, indices: Int[np.ndarray, "b"]) -> Batch:
        """Returns the examples at `indices`, stacked."""
        self._read(indices)
        return {key: array[indices] for key, array in self._arrays.items()}


def open_dataset(
    records: Sequence[FaceRecord], config: DataConfig, vocabulary: Vocabulary, make_maps: MakeMaps | None = None
) -> FaceDataset:
    """Returns the dataset that `config` asks for."""
    kind = MemoryDataset if config.cache_in_memory else FaceDataset
    maps = Path(config.mask_cache) if config.mask_cache else None
    return kind(records, vocabulary, config.image_size, maps, config.frame, make_maps)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    # Philox is keyed, not seeded through a hash, so an epoch's order needs no history.
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def stream_places(seed: int, start: int, stop: int, count: int) -> Int[np.ndarray, "m"]:
    """Returns the places `start` to `stop − 1` of the endless shuffled stream over `count` items."""
    places = np.arange(start, stop)
    epochs = places // count
    result = np.empty(len(places), np.int64)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        result[inside] = _permutation(seed, int(epoch), count)[places[inside] % count]
    return result


@dataclass(frozen=True)
class _Steps:
    """Grain's random-access source of this host's rows of every global batch."""

    dataset: FaceDataset
    epoch: Int[np.ndarray, "m"]
    batch_size: int
    # None: in order, once, the last batch filled up with faces of weight 0.
    seed: int | None
    host_index: int
    host_count: int
    transform: Transform | None

    def __post_init__(self):
        if self.batch_size % self.host_count:
            raise UserError(f"data.batch_size {self.batch_size} is not a multiple of the {self.host_count} hosts")

    def __len__(self) -> int:
        return _ENDLESS if self.seed is not None else -(-len(self.epoch) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        step = int(step)
        local = self.batch_size // self.host_count
        start = step * self.batch_size + self.host_index * local
        if self.seed is not None:
            places = stream_places(self.seed, start, start + local, len(self.epoch))
        else:
            places = np.arange(start, start + local)
        real = places < len(self.epoch)
        indices = self.epoch[np.where(real, places, 0)]
        batch = self.dataset.gather(indices)
        batch["index"] = np.where(real, indices, -1)
        batch["row"] = np.arange(self.host_index * local, (self.host_index + 1) * local)
        batch["weight"] = real.astype(np.float32)
        return self.transform(batch, step) if self.transform else batch


def training_batches(
    dataset: FaceDataset,
    *,
    batch_size: int,
    seed: int,
    epoch: Int[np.ndarray, "m"] | None = None,
    start_step: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    workers: int = 0,
    transform: Transform | None = None,
) -> Iterator[Batch]:
    """Yields this host's part of global batch `start_step`, `start_step + 1`, ... without end.

    Args:
      batch_size: faces in a global batch; `host_count` must divide it.
      epoch: indices that make up an epoch (`Mixture.epoch`); every face once by default.
      workers: processes that decode; 0 decodes on two threads of this process.
      transform: called with the batch and its step; runs in the worker.

    Yields:
      `image`, `mask`, `labels`, `known`, `weight` (all 1) as docs/architecture.md has them, `index` (`b` int64,
      place in the dataset's records) and `row` (`b` int64, row of the global batch).
    """
    epoch = np.arange(len(dataset)) if epoch is None else np.asarray(epoch)
    if not len(epoch):
        raise UserError("there are no faces to train on")
    return _iterate(_Steps(dataset, epoch, batch_size, seed, host_index, host_count, transform), start_step, workers)


def evaluation_batches(
    dataset: FaceDataset, *, batch_size: int, host_index: int = 0, host_count: int = 1
) -> Iterator[Batch]:
    """Yields every face once, in order. The last batch is filled up with faces of `weight` 0 and `index` −1.

    Every host gets the same number of batches; other arguments and keys are those of `training_batches`.
    """
    epoch = np.arange(len(dataset))
    return _iterate(_Steps(dataset, epoch, batch_size, None, host_index, host_count, None), 0, 0)


def _iterate(steps: _Steps, start: int, workers: int) -> Iterator[Batch]:
    dataset = grain.MapDataset.source(steps)[start:]
    if isinstance(steps.dataset, MemoryDataset):
        # Copying rows needs no help, and the arrays are too large to give to workers.
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)))
    if not workers:
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PREFETCH)))
    from absl import flags

    # grain's workers ask absl for flags, which only absl's own main would have parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # A worker decodes on its main thread: one more would only hand batches over.
    stream = dataset.map(_without_blank_map).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.experimental.DatasetOptions(min_shm_size=_SHARED_BYTES)
    stream = grain.experimental.WithOptionsIterDataset(stream, options)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return _watched(stream.mp_prefetch(options, worker_init_fn=end_with_parent).map(_with_map))


def _watched(stream: grain.IterDataset[Batch]) -> Iterator[Batch]:
    """Yields what worker processes make; one that cannot start or died is a `UserError`."""
    full = "/dev/shm is full: give the container more (docker: --shm-size 2g), or set data.workers to 0"
    batches = None
    try:
        batches = iter(stream)
        yield from batches
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"data workers cannot start; {full}") from None
    except RuntimeError as error:
        code = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if not code:
            raise
        # A write to shared memory that does not exist any more is signal 7.
        why = full if code[1] == "-7" else "see above, or set data.workers to 0"
        raise UserError(f"a data worker died (exit code {code[1]}); {why}") from None
    finally:
        if batches is not None:
            batches.close()


def _without_blank_map(batch: Batch) -> Batch:
    """Leaves out a map of class 0 alone, which `_with_map` makes anew: sharing it costs as much as a third picture."""
    if "image" in batch and not batch["mask"].any():
        return {key: value for key, value in batch.items() if key != "mask"}
    return batch


def _with_map(batch: Batch) -> Batch:
    return batch if "mask" in batch else batch | {"mask": _blank_map(batch["image"].shape[:-1])}


@lru_cache(maxsize=4)
def _blank_map(shape: tuple[int, ...]) -> UInt8[np.ndarray, "b y x"]:
    blank = np.zeros(shape, np.uint8)
    blank.flags.writeable = False
    return blank
