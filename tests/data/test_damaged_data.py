"""Damaged files of every format that data reads: a named error or what is left, never another exception."""

import json
import random

import numpy as np
import pytest
from fuzz import MUTATIONS, bounded_memory

from fi_jax.data.datasets import find_dataset, open_source
from fi_jax.data.examples import examine
from fi_jax.data.kept import kept_arrays
from fi_jax.data.prepare import prepare
from fi_jax.errors import UserError
from fi_jax.knowledge.graph_file import read_graph


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One accident: bytes changed, cut out, doubled or put in; for JSON also a value of another type."""
    kind = rng.randrange(6)
    at = rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + data[at:]
    if kind == 2:
        return data[:at] + data[at + rng.randrange(1, 40) :]
    if kind == 3:
        return data[:at] + data[at : at + 200] + data[at:]
    if kind == 4:
        strange = ("²", "-", "--1", "9" * 30, "1e308", "nan", '"', ",,", "\r", "\0", "../../x", "é", "[" * 5000, " ")
        return data[:at] + rng.choice(strange).encode() + data[at:]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def of_another_type(value, rng: random.Random):
    """The same JSON with one value, anywhere, replaced, or left out."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        copy = value.copy()
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        if rng.random() < 0.2:
            del copy[key]
        else:
            copy[key] = of_another_type(copy[key], rng)
        return copy
    return rng.choice([None, True, -1, 1e300, "", "../../x", [], {}, [None], {"a": 1}, "?" * 40])


def attack(path, read, seed, json_too=False):
    """Reads every mutation of a file; returns how many were refused."""
    good, refused = path.read_bytes(), 0
    rng = random.Random(seed)
    for i in range(MUTATIONS):
        if json_too and i % 2:
            path.write_text(json.dumps(of_another_type(json.loads(good), rng)))
        else:
            path.write_bytes(mutated(good, rng))
        try:
            with bounded_memory():
                read()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    path.write_bytes(good)
    read()
    return refused


@pytest.mark.parametrize(
    "name,file",
    [
        ("celeba", "list_attr_celeba.txt"),
        ("celeba", "list_eval_partition.txt"),
        ("celeba", "identity_CelebA.txt"),
        ("expw", "label/label.lst"),
        ("fairface", "fairface_label_train.csv"),
        ("maad_face", "MAAD_Face.csv"),
        ("raf_db", "EmoLabel/list_patition_label.txt"),
    ],
)
def test_label_files(releases, name, file):
    root = getattr(releases, name)()
    assert attack(root / file, lambda: open_source(name, root), f"{name} {file}") < MUTATIONS


@pytest.mark.parametrize("file", ["boundingbox/train_00001_boundingbox.txt", "manual/train_00001_manu_attri.txt"])
def test_raf_db_annotations(releases, file):
    root = releases.raf_db(original=True)
    attack(root / "Annotation" / file, lambda: open_source("raf_db", root), file)


@pytest.mark.parametrize("file", ["manifest.json", "faces-00000.json", "faces-00000.array_record"])
def test_prepared_sets(releases, tmp_path, file):
    prepare(open_source("expw", releases.expw()), tmp_path / "out")
    dataset = find_dataset("expw")

    def read():
        source = dataset.open(tmp_path / "out")
        for face in source.records()[:3]:
            face.image.read_bytes()
        examine(source.records()[:2])

    assert attack(tmp_path / "out" / file, read, file, json_too=file.endswith(".json")) > 20


def test_graphs(releases, tmp_path):
    prepare(open_source("expw", releases.expw()), tmp_path / "out")
    path = tmp_path / "out" / "counts.npz"
    assert attack(path, lambda: read_graph(path, ("m", "n", "k")), "counts") > MUTATIONS // 2
    np.savez(path, names=np.array([{}], object), m=1)
    with pytest.raises(UserError, match="is not a graph"):
        read_graph(path, ("m",))


def test_kept_findings_are_made_anew(releases, monkeypatch, tmp_path):
    monkeypatch.setenv("FI_JAX_CACHE", str(tmp_path / "cache"))
    source = open_source("utkface", releases.utkface())
    expected = examine(source.records())
    rng = random.Random(0)
    for kind in ("examined", "near_duplicates"):
        (path,) = (tmp_path / "cache" / kind).glob("*.json")
        good = path.read_bytes()
        for _ in range(10):
            path.write_bytes(mutated(good, rng))
            assert open_source("utkface", releases.root / "utkface") == source and examine(source.records()) == expected
            assert path.read_bytes() == good


def test_kept_arrays_are_made_once_anew_when_damaged_and_not_kept_where_nothing_can_be(tmp_path, caplog):
    made = []

    def find() -> dict[str, np.ndarray]:
        made.append(1)
        return {"a": np.arange(100.0)}

    path, rng = tmp_path / "cache" / "x.npz", random.Random(0)
    for _ in range(2):
        assert (kept_arrays(path, find)["a"] == np.arange(100)).all() and len(made) == 1
    good = path.read_bytes()
    for count in range(2, 10):
        path.write_bytes(mutated(good, rng))
        assert (kept_arrays(path, find)["a"] == np.arange(100)).all() and len(made) == count
    (tmp_path / "file").write_text("in the folder's place")
    with caplog.at_level("WARNING", logger="fi_jax"):
        assert (kept_arrays(tmp_path / "file" / "x.npz", find)["a"] == np.arange(100)).all()
    assert "going on without the cache" in caplog.text


def test_a_manifest_that_leads_out_of_its_folder(releases, tmp_path):
    prepare(open_source("expw", releases.expw()), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text().replace('"faces-00000.array_record"', '"../out/faces-00000.array_record"'))
    with pytest.raises(UserError, match="would lead out of"):
        open_source("expw", tmp_path / "out")
