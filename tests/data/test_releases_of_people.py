"""Releases as they lie on people's disks: other endings, separators, Unicode forms; and files that are something else."""

import os
import re
import unicodedata

import numpy as np
import pytest

from fi_jax.data.datasets import open_source
from fi_jax.data.prepare import prepare
from fi_jax.errors import UserError


def reasons(source):
    return {item.key: item.reason for item in source.rejected}


def by_key(source):
    return {record.key: record for record in source.records()}


def facts(source):
    return [(face.key, face.split, dict(face.labels), face.age, face.box) for face in source.records("all")]


@pytest.mark.parametrize(
    "name", ["celeba", "utkface", "expw", "fer2013", "fairface", "maad_face", "raf_db", "celebamask_hq"]
)
def test_upper_case_endings_are_the_same_pictures(releases, tmp_path, name):
    plain = facts(open_source(name, getattr(releases, name)()))
    root = getattr(type(releases)(tmp_path / "other"), name)()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".jpg", ".png"):
            path.rename(path.with_suffix(path.suffix.upper()))
    source = open_source(name, root)
    assert facts(source) == plain and not source.rejected


def csv_of_celeba(root, releases, separator=",", header=lambda names: names, row=lambda cells: cells):
    lines = (root / "list_attr_celeba.txt").read_text().rstrip("\n").split("\n")
    rows = [header(["image_id", *lines[1].split()]), *(row(line.split()) for line in lines[2:])]
    (root / "list_attr_celeba.txt").unlink()
    releases.write(root / "list_attr_celeba.csv", "\n".join(separator.join(cells) for cells in rows) + "\n")


@pytest.mark.parametrize(
    "change,note",
    [
        ({"row": lambda cells: [f'"{cell}"' for cell in cells], "header": lambda names: [f'"{n}"' for n in names]}, ""),
        ({"row": lambda cells: ["7", *cells], "header": lambda names: ["", *names]}, "column '' left out"),
        ({"row": lambda cells: [*cells, ""], "header": lambda names: [*names, ""]}, "column '' left out"),
        ({"separator": ";"}, "separated by semicolons"),
        ({"separator": "\t"}, "separated by tabs"),
        ({"header": lambda names: [name.upper() for name in names]}, "column 'SMILING' read as 'Smiling'"),
        ({"header": lambda names: ["filename", *names[1:]]}, ""),
    ],
)
def test_celeba_csv_copies(releases, change, note):
    root = releases.celeba(count=8)
    plain = facts(open_source("celeba", root))
    csv_of_celeba(root, releases, **change)
    source = open_source("celeba", root)
    assert facts(source) == plain and not source.rejected
    assert any(note in said for said in source.notes) if note else not source.notes


def test_celeba_zero_for_false_is_refused_with_a_hint(releases):
    root = releases.celeba(count=8)
    csv_of_celeba(root, releases, row=lambda cells: [cell.replace("-1", "0") for cell in cells])
    with pytest.raises(UserError, match="line 2 has the unknown value '0'; the values are 1, -1; .*write -1 for 0"):
        open_source("celeba", root)


def test_fairface_lower_case_gender(releases):
    root = releases.fairface()
    plain = facts(open_source("fairface", root))
    for part in ("train", "val"):
        file = root / f"fairface_label_{part}.csv"
        file.write_text(file.read_text().replace(",Male,", ",male,").replace(",Female,", ",female,"))
    source = open_source("fairface", root)
    assert facts(source) == plain and any("gender 'male' read as 'Male'" in note for note in source.notes)


def test_utkface_own_misspelt_ending(releases):
    root = releases.utkface()
    releases.write(root / "UTKFace" / "44_1_4_20170116235150272.pg.chip.jpg", releases.jpeg(77, 48, 48))
    assert by_key(open_source("utkface", root))["44_1_4_20170116235150272.pg.chip.jpg"].age == 44


@pytest.mark.parametrize(
    "name",
    ["²0_0_0_2017.jpg.chip.jpg", "٣_0_0_2017.jpg.chip.jpg", "--1_0_0_2017.jpg.chip.jpg", f"{'9' * 30}_0_0_1.jpg"],
)
def test_numbers_that_are_no_plain_digits(releases, name):
    root = releases.utkface()
    releases.write(root / "UTKFace" / name, releases.jpeg(78, 48, 48))
    assert "name is not [age]" in reasons(open_source("utkface", root))[name]


def test_raf_db_empty_aligned_beside_original(releases):
    root = releases.raf_db(original=True)
    (root / "Image" / "aligned").mkdir()
    assert len(open_source("raf_db", root).records("all")) == 14
    for picture in (root / "Image" / "original").iterdir():
        picture.unlink()
    with pytest.raises(UserError, match="aligned' holds no pictures"):
        open_source("raf_db", root)


def test_only_the_archive_is_there(releases):
    root = releases.celeba()
    for picture in (root / "img_align_celeba").iterdir():
        picture.unlink()
    (root / "img_align_celeba").rmdir()
    releases.write(root / "img_align_celeba.zip", b"PK\x03\x04")
    with pytest.raises(UserError, match="img_align_celeba' is missing; unpack 'img_align_celeba.zip' there"):
        open_source("celeba", root)


@pytest.mark.parametrize(
    "content,message",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"<html>\n", "web page"),
        (b"PK\x03\x04abc", "zip archive"),
        (b"\xff\xfea\x00", "not UTF-8"),
        (b"", "no column '5_o_Clock_Shadow'"),
    ],
)
def test_a_label_file_that_is_something_else(releases, content, message):
    root = releases.celeba()
    (root / "list_attr_celeba.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"list_attr_celeba.txt'.*{message}|{message}"):
        open_source("celeba", root)


def test_cr_line_ends_and_long_fields(releases):
    root = releases.fairface()
    plain = facts(open_source("fairface", root))
    file = root / "fairface_label_train.csv"
    good = file.read_bytes()
    file.write_bytes(good.replace(b"\n", b"\r"))
    assert facts(open_source("fairface", root)) == plain
    file.write_bytes(good + b"train/1.jpg," + b"x" * 200_000 + b",Male,White,True\n")
    with pytest.raises(UserError, match="fairface_label_train.csv' line 1[0-9]* cannot be read"):
        open_source("fairface", root)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_unicode_form(releases, tmp_path, form):
    root = releases.expw()
    listed, on_disk = unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.jpg")
    if form == "NFD":
        listed, on_disk = on_disk, listed
    (root / "image" / "origin" / "happy_man_1.jpg").rename(root / "image" / "origin" / on_disk)
    file = root / "label" / "label.lst"
    file.write_text(file.read_text().replace("happy_man_1.jpg", listed))
    source = open_source("expw", root)
    assert len(source.records("all")) == 8 and not source.rejected
    assert unicodedata.normalize("NFC", "é.jpg#0") in by_key(source)
    manifest, _ = prepare(source, tmp_path / "out")
    assert facts(open_source("expw", tmp_path / "out")) == facts(source) and manifest["faces"] == 8


def test_a_name_that_is_not_utf8_is_rejected_at_once(releases, tmp_path):
    root = releases.utkface()
    (root / "UTKFace" / os.fsdecode(b"1_0_0_\xe9.jpg.chip.jpg")).write_bytes(releases.jpeg(1))
    source = open_source("utkface", root)
    assert [item.reason for item in source.rejected] == ["its name is not UTF-8; rename it"]
    manifest, _ = prepare(source, tmp_path / "out")
    assert manifest["faces"] == 12 and manifest["num_rejected"] == 1


def test_two_names_that_differ_in_form_alone(releases):
    root = releases.utkface()
    first = next(iter((root / "UTKFace").iterdir()))
    first.with_suffix(".JPG").write_bytes(first.read_bytes())
    (reason,) = reasons(open_source("utkface", root)).values()
    assert "the same name as" in reason


def test_folders_that_link_to_themselves(releases):
    root = releases.maad_face()
    plain = facts(open_source("maad_face", root))
    (root / "train" / "again").symlink_to(root / "train")
    (root / "train" / "loop").symlink_to(root / "train" / "loop")
    assert facts(open_source("maad_face", root)) == plain


@pytest.mark.parametrize("edge", ["1e308", "-1e300", "inf", "٣"])
def test_boxes_of_no_picture(releases, edge):
    root = releases.expw()
    file = root / "label" / "label.lst"
    file.write_text(re.sub(r"^(happy_man_0.jpg 0 20 5) \d+", rf"\1 {edge}", file.read_text()))
    found = reasons(open_source("expw", root))["happy_man_0.jpg#0"]
    assert "the box is not four numbers" in found


def test_rejections_are_told_by_reason_with_totals(releases, tmp_path, capsys):
    from fi_jax.cli.main import main

    root = releases.celeba()
    for name in ("000002.jpg", "000003.jpg", "000004.jpg"):
        (root / "img_align_celeba" / name).unlink()
    for name in ("000005.jpg", "000006.jpg"):
        (root / "img_align_celeba" / name).write_text("not a picture")
    command = ["prepare", "celeba", "--data-root", str(root), "--out", str(tmp_path / "out"), "--no-masks"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "rejected: 000002.jpg and 2 more: picture missing" in out and "all 5 rejected" in out
    assert re.search(r"rejected: 000005.jpg and 1 more: is not an image", out)
    assert np.load(tmp_path / "out" / "counts.npz")["m"].shape == (40, 40)
