"""What changes the fingerprint of faces, and what does not: names, labels, boxes and sizes; not folders and times."""

import os
import shutil
from dataclasses import replace

import pytest

from fi_jax.data.records import FaceRecord
from fi_jax.training.fingerprint import differences, fingerprint


@pytest.fixture
def records(tmp_path):
    made = []
    for i in range(3):
        path = tmp_path / "here" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * (10 + i))
        made.append(FaceRecord("utkface", path.name, "train", path, {"Male": bool(i % 2)}, age=float(i)))
    return made


def test_folder_and_time_do_not_matter(records, tmp_path):
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = [replace(record, image=tmp_path / "there" / record.key) for record in records]
    os.utime(moved[0].image, (0, 0))
    assert differences(fingerprint(records), fingerprint(moved)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r[:-1], "utkface had 3 faces and has 2"),
        (lambda r: [r[1], r[0], r[2]], "another order"),
        (lambda r: [replace(r[0], labels={"Male": True}), *r[1:]], "other labels"),
        (lambda r: [replace(r[0], age=40.0), *r[1:]], "other labels"),
        (lambda r: [replace(r[0], box=(0, 0, 5, 5)), *r[1:]], "other labels or boxes"),
        (lambda r: [replace(r[0], image=b"bytes"), *r[1:]], "other pictures"),
        (lambda r: [replace(r[0], dataset="fairface"), *r[1:]], "fairface had 0 faces and has 1"),
    ],
)
def test_what_is_noticed(records, change, says):
    found = differences(fingerprint(records), fingerprint(change(records)))
    assert any(says in line for line in found)


def test_a_replaced_file_is_noticed(records):
    before = fingerprint(records)
    whole = records[1].image.read_bytes()
    for other in (b"another picture", whole[:-1] + bytes([whole[-1] ^ 1])):
        records[1].image.write_bytes(other)
        assert differences(before, fingerprint(records)) == ["utkface has other pictures or maps"]
    records[1].image.write_bytes(whole)
    assert differences(before, fingerprint(records)) == []
