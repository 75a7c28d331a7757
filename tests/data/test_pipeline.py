import itertools
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.config import DataConfig, SourceConfig
from fi_jax.data import examples, pipeline
from fi_jax.data.counts import count_records, label_blocks
from fi_jax.data.datasets import open_source
from fi_jax.data.records import FaceRecord
from fi_jax.errors import UserError
from fi_jax.knowledge import correlation
from fi_jax.labels.registry import vocabulary

VOCABULARY = vocabulary("faces")


def may_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


class Numbers(pipeline.MemoryDataset):
    """The pipeline's order alone: examples that are only their index."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def gather(self, indices):
        return {"image": np.asarray(indices)}


def first(dataset, steps, **options):
    return list(itertools.islice(pipeline.training_batches(dataset, **options), steps))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 5),
    st.integers(0, 20),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
)
def test_stream_is_a_pure_function_of_seed_and_step(count, seed, start, hosts):
    options = {"batch_size": 12, "seed": seed}
    dataset = Numbers(count)
    whole = [b["index"] for b in first(dataset, start + 3, **options)]
    # Resuming at `start`, on another number of hosts, reads what one host would have read.
    parts = [first(dataset, 3, start_step=start, host_index=h, host_count=hosts, **options) for h in range(hosts)]
    for step in range(3):
        joined = np.concatenate([part[step]["index"] for part in parts])
        assert np.array_equal(joined, whole[start + step])
        assert np.array_equal(np.concatenate([part[step]["row"] for part in parts]), np.arange(12))
    # Every epoch's worth of the stream holds every face once.
    stream = np.concatenate(whole)
    for epoch in range(len(stream) // count):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ():
    stream = np.concatenate([b["index"] for b in first(Numbers(50), 20, batch_size=10, seed=3)])
    other = np.concatenate([b["index"] for b in first(Numbers(50), 20, batch_size=10, seed=4)])
    assert not np.array_equal(stream[:50], stream[50:100]) and not np.array_equal(stream, other)
    far = first(Numbers(50), 1, batch_size=10, seed=3, start_step=10**7)[0]
    assert len(set(far["index"])) == 10


def test_repeats_make_an_epoch():
    epoch = np.array([0, 1, 2, 3, 3, 3])
    stream = np.concatenate([b["index"] for b in first(Numbers(4), 6, batch_size=2, seed=0, epoch=epoch)])
    assert Counter(stream[:6]) == Counter(stream[6:]) == {0: 1, 1: 1, 2: 1, 3: 3}


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_sees_every_face_once_in_order(hosts):
    parts = [
        list(pipeline.evaluation_batches(Numbers(10), batch_size=4, host_index=h, host_count=hosts))
        for h in range(hosts)
    ]
    assert {len(part) for part in parts} == {3}
    rows = [np.concatenate([part[s][k] for part in parts]) for k in ("index", "weight") for s in range(3)]
    index, weight = np.concatenate(rows[:3]), np.concatenate(rows[3:])
    assert list(index) == [*range(10), -1, -1] and list(weight) == [1.0] * 10 + [0.0] * 2


def test_hosts_must_divide_the_batch():
    with pytest.raises(UserError, match="batch_size 10 is not a multiple of the 4 hosts"):
        pipeline.training_batches(Numbers(5), batch_size=10, seed=0, host_count=4)


@pytest.fixture
def faces(releases):
    return open_source("celeba", releases.celeba(count=20)).records("all")


def same(a, b):
    return all(np.array_equal(a[key], b[key]) for key in a) and a.keys() == b.keys()


def test_batches_hold_the_examples(faces):
    dataset = pipeline.FaceDataset(faces, VOCABULARY, 32)
    batch = first(dataset, 1, batch_size=6, seed=1)[0]
    assert batch["image"].shape == (6, 32, 32, 3) and batch["image"].dtype == np.uint8
    assert batch["mask"].shape == (6, 32, 32) and (batch["weight"] == 1).all()
    for row, index in enumerate(batch["index"]):
        example = examples.make_example(faces[index], VOCABULARY, 32)
        assert same(example, {key: batch[key][row] for key in example})


def test_memory_and_disk_agree(faces):
    disk = first(pipeline.FaceDataset(faces, VOCABULARY, 24), 5, batch_size=6, seed=1)
    memory = first(pipeline.MemoryDataset(faces, VOCABULARY, 24), 5, batch_size=6, seed=1)
    assert all(same(a, b) for a, b in zip(disk, memory, strict=True))


def add_step(batch, step):
    return batch | {"step": np.full(len(batch["row"]), step)}


def test_worker_processes_agree(faces):
    dataset = pipeline.FaceDataset(faces, VOCABULARY, 24)
    options = {"batch_size": 6, "seed": 1, "start_step": 2, "transform": add_step}
    alone, helped = first(dataset, 4, **options), first(dataset, 4, workers=2, **options)
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert [b["step"][0] for b in helped] == [2, 3, 4, 5]
    # No face here has a map: the blank ones are made after the workers.
    assert not helped[0]["mask"].any() and helped[0]["mask"].shape == (6, 24, 24)


def test_worker_processes_hand_maps_over(releases):
    faces = open_source("celebamask_hq", releases.celebamask_hq()).records("all")
    dataset = pipeline.FaceDataset(faces, VOCABULARY, 24)
    alone, helped = (first(dataset, 2, batch_size=2, seed=0, workers=workers) for workers in (0, 1))
    assert alone[0]["mask"].any()
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_unreadable_files_are_skipped_counted_and_listed(releases):
    root = releases.celeba(count=20)
    good = (root / "img_align_celeba" / "000004.jpg").read_bytes()
    (root / "img_align_celeba" / "000004.jpg").write_bytes(good[: len(good) // 2])
    (root / "img_align_celeba" / "000007.jpg").write_text("not a picture")
    source = (SourceConfig("celeba", str(root), split="all"),)
    mixture = pipeline.load_mixture(DataConfig(sources=source, max_unreadable=0.1))
    assert len(mixture.records) == len(mixture.epoch) == 18
    assert {item.key: item.reason.split(" is ")[1][:9] for item in mixture.unreadable} == {
        "celeba/000004.jpg": "a damaged",
        "celeba/000007.jpg": "not an im",
    }
    # The findings are cached, and a repaired file is noticed.
    assert len(pipeline.load_mixture(DataConfig(sources=source, max_unreadable=0.1)).records) == 18
    with pytest.raises(UserError, match="2 of 20 faces cannot be read.*000004.jpg"):
        pipeline.load_mixture(DataConfig(sources=source, max_unreadable=0.05))
    (root / "img_align_celeba" / "000004.jpg").write_bytes(good)
    (root / "img_align_celeba" / "000007.jpg").write_bytes(good)
    assert len(pipeline.load_mixture(DataConfig(sources=source, max_unreadable=0.0)).records) == 20


def test_mixture_repeats_and_empty_splits(releases):
    celeba, expw = releases.celeba(count=6, parts="000011"), releases.expw()
    config = DataConfig(sources=(SourceConfig("celeba", str(celeba)), SourceConfig("expw", str(expw), "all", repeat=3)))
    mixture = pipeline.load_mixture(config)
    assert len(mixture.records) == 4 + 8 and len(mixture.epoch) == 4 + 24
    assert Counter(mixture.epoch)[0] == 1 and Counter(mixture.epoch)[5] == 3
    with pytest.raises(UserError, match="split 'test' has no faces"):
        pipeline.load_mixture(DataConfig(sources=(SourceConfig("celeba", str(celeba), "test"),)))
    with pytest.raises(UserError, match="data.sources is empty"):
        pipeline.load_mixture(DataConfig())


def test_own_mask_then_cached_then_background(releases, tmp_path):
    from fi_jax.faces.map_cache import cached_map, keep_map
    from fi_jax.pictures.header import read_bytes

    record = open_source("celebamask_hq", releases.celebamask_hq()).records("all")[0]
    assert set(np.unique(examples.load_mask(record, 16))) == {0, 1, 13}
    bare = FaceRecord("utkface", "a/b.jpg", "train", record.image)
    assert not examples.load_mask(bare, 16, tmp_path).any()
    path = Path(cached_map(tmp_path, read_bytes(bare.image), None))
    keep_map(path, np.full((16, 16), 5, np.uint8))
    assert (examples.load_mask(bare, 16, tmp_path) == 5).all()


def test_mask_of_another_size_is_refused(releases):
    from fi_jax.faces.masks import encode_mask

    root = releases.celebamask_hq()
    (root / "masks" / "face0.png").write_bytes(encode_mask(np.zeros((16, 16), np.uint8)))
    record = open_source("celebamask_hq", root).records("all")[0]
    with pytest.raises(UserError, match="mask of 'face0.jpg' is 16x16 but the picture is 32x32"):
        examples.make_example(record, VOCABULARY, 16)
    assert "16x16" in examples.examine([record])[1][0].reason


def test_counts_equal_those_of_the_whole_table(faces):
    ((labels, known),) = label_blocks(faces, VOCABULARY)
    expected = correlation.update(correlation.empty(len(VOCABULARY)), labels, known)
    found = count_records(faces, VOCABULARY)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [len(block) for block, _ in label_blocks(faces, VOCABULARY, 8)] == [8, 8, 4]
    i = VOCABULARY.index("Smiling")
    assert found.m[i, i] == sum(face.labels["Smiling"] for face in faces)


class Dying:
    """What grain's iterator does when a worker process dies."""

    def __init__(self, code):
        self.code, self.read, self.closed = code, 0, False

    def __iter__(self):
        return self

    def __next__(self):
        self.read += 1
        if self.read == 1:
            return {}
        raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {self.code}. Search the logs")

    def close(self):
        self.closed = True


@pytest.mark.parametrize("code,why", [(-7, "/dev/shm is full"), (-9, "exit code -9")])
def test_a_worker_that_died_is_one_clear_line(code, why):
    dying = Dying(code)
    with pytest.raises(UserError, match=why) as error:
        list(pipeline._watched(dying))
    assert "data.workers to 0" in str(error.value) and dying.closed


KILLED = """
import sys
from multiprocessing import shared_memory
shared_memory._SHM_NAME_PREFIX = sys.argv[2]  # To tell this run's blocks from others'.
from fi_jax.data import pipeline
from fi_jax.data.datasets import open_source
from fi_jax.labels.registry import vocabulary
if __name__ == "__main__":
    faces = open_source("celeba", sys.argv[1]).records("all")
    dataset = pipeline.FaceDataset(faces, vocabulary("celeba"), 112)
    for batch in pipeline.training_batches(dataset, batch_size=8, seed=0, workers=2):
        print("ready", flush=True)
"""


def test_workers_end_with_their_parent(releases, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    prefix = f"/psm_{secrets.token_hex(2)}"  # Names have 14 letters at most.
    command = [sys.executable, str(tmp_path / "killed.py"), str(releases.celeba(count=20)), prefix]
    environment = os.environ | {"PYTHONPATH": str(Path(pipeline.__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "ready\n"
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    assert list(Path("/dev/shm").glob(f"{prefix[1:]}*"))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (any(map(alive, children)) or list(Path("/dev/shm").glob(f"{prefix[1:]}*"))):
        time.sleep(0.2)
    assert children and not any(map(alive, children))
    assert not list(Path("/dev/shm").glob(f"{prefix[1:]}*"))


def alive(child):
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not may_mount(), reason="cannot mount a file system of its own here")
@pytest.mark.parametrize(
    ("size", "says"),
    # A container gives 64 MB unless told otherwise. A worker that writes more than there is gets signal 7; with almost
    # nothing there is no place for the locks of a worker.
    [
        ("400k", "a data worker died (exit code -7); /dev/shm is full"),
        ("4k", "data workers cannot start; /dev/shm is full"),
    ],
)
def test_shared_memory_that_is_too_small_is_one_line(utkface_folder, size, says):
    code = f"""
from fi_jax.config import DataConfig, SourceConfig
from fi_jax.data import pipeline
from fi_jax.errors import UserError
from fi_jax.labels.registry import vocabulary
if __name__ == "__main__":
    records = pipeline.load_mixture(DataConfig(sources=(SourceConfig("utkface", {str(utkface_folder)!r}),))).records
    dataset = pipeline.FaceDataset(records, vocabulary("faces"), 112)
    try:
        for batch in pipeline.training_batches(dataset, batch_size=16, seed=0, workers=1):
            print("read", flush=True)
    except UserError as error:
        print(error)
"""
    file = utkface_folder.parent / "small_shm.py"
    file.write_text(code)
    shell = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} {file}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", shell], capture_output=True, text=True, timeout=100)
    assert says in done.stdout, done.stdout + done.stderr[-2000:]
