from collections import Counter

import numpy as np
import pytest

from fi_jax.data.datasets import open_source
from fi_jax.data.sources import celeba
from fi_jax.data.splits import hash_split
from fi_jax.errors import UserError
from fi_jax.faces import masks
from fi_jax.pictures.decode import decode


def reasons(source):
    return {item.key: item.reason for item in source.rejected}


def by_key(source, split="all"):
    return {record.key: record for record in source.records(split)}


def test_unknown_set_and_missing_folder():
    with pytest.raises(UserError, match="did you mean 'celeba'"):
        open_source("celebaa", "/nowhere")
    with pytest.raises(UserError, match="does not exist"):
        open_source("celeba", "/nowhere")
    with pytest.raises(UserError, match="no folder given"):
        open_source("celeba", "")


# CelebA


def test_celeba_by_identity_when_only_train_pictures_are_there(releases):
    root = releases.celeba(count=60)
    source = open_source("celeba", root)
    faces = by_key(source)
    assert len(faces) == 60 and not source.rejected
    for record in faces.values():
        assert record.split == hash_split(record.identity, "celeba")
    assert len({r.split for r in faces.values()}) > 1
    first = faces["000001.jpg"]
    assert first.box == (0.0, 30.0, 178.0, 208.0)
    assert len(first.labels) == 41 and first.labels["Female"] == (not first.labels["Male"])
    assert list(faces) == sorted(faces)
    assert sum(len(source.records(s)) for s in ("train", "val", "test")) == 60


def test_celeba_keeps_the_official_partition_when_it_shows(releases):
    source = open_source("celeba", releases.celeba(count=6, parts="001122"))
    assert [r.split for r in source.records("all")] == ["train", "train", "val", "val", "test", "test"]


def test_celeba_small_copy_is_cropped_alike(releases):
    source = open_source("celeba", releases.celeba(size=(109, 89)))
    assert source.records("all")[0].box == (0.0, 15.0, 89.0, 104.0)


@pytest.mark.parametrize("newline,bom", [("\r\n", ""), ("\n", "\ufeff"), ("\r\n", "\ufeff")])
def test_celeba_crlf_and_bom_change_nothing(releases, tmp_path, newline, bom):
    plain = open_source("celeba", releases.celeba())
    other = type(releases)(tmp_path / "other").celeba(newline=newline)
    for file in other.glob("*.txt"):
        file.write_bytes((bom + file.read_bytes().decode()).encode())
    corrected = open_source("celeba", other)
    assert not corrected.rejected
    assert [dict(r.labels) for r in corrected.records("all")] == [dict(r.labels) for r in plain.records("all")]
    assert [r.split for r in corrected.records("all")] == [r.split for r in plain.records("all")]


def test_celeba_rows_and_pictures_that_do_not_meet_are_named(releases):
    root = releases.celeba()
    (root / "img_align_celeba" / "000002.jpg").unlink()
    releases.write(root / "img_align_celeba" / "stranger.jpg", releases.jpeg(1))
    text = (root / "list_attr_celeba.txt").read_text().split("\n")
    text.append(text[2])
    text.append(text[4].replace(" 1", "-1"))
    text.append("000099.jpg 1 -1")
    (root / "list_attr_celeba.txt").write_text("\n".join(text))
    source = open_source("celeba", root)
    found = reasons(source)
    assert found["000002.jpg"] == "picture missing" and "disagree" in found["000003.jpg"]
    assert found["stranger.jpg"] == "no row in list_attr_celeba"
    assert "duplicate row" in found["000001.jpg"]
    assert "3 columns, not 41" in found["000099.jpg"]
    assert any("its first line says 12 rows, it has 15" in note for note in source.notes)
    assert len(source.records("all")) == 10


def test_celeba_extra_column_is_left_out_by_name_and_extra_cells_rejected(releases):
    root = releases.celeba()
    plain = [dict(r.labels) for r in open_source("celeba", root).records("all")]
    lines = (root / "list_attr_celeba.txt").read_text().rstrip("\n").split("\n")
    wide = [lines[0], lines[1] + " Freckles", *(line + "  1" for line in lines[2:])]
    (root / "list_attr_celeba.txt").write_text("\n".join(wide) + "\n")
    source = open_source("celeba", root)
    assert [dict(r.labels) for r in source.records("all")] == plain
    assert any("'Freckles' left out" in note for note in source.notes)
    (root / "list_attr_celeba.txt").write_text(
        "\n".join([*lines[:2], *(line + "  1" for line in lines[2:4]), *lines[4:]])
    )
    source = open_source("celeba", root)
    assert "42 columns, not 41" in reasons(source)["000001.jpg"]
    assert len(source.records("all")) == 10


@pytest.mark.parametrize(
    "old,new,message",
    [
        (" -1", " 7", "unknown value '7'"),
        (" -1", " yes", "unknown value 'yes'"),
        ("Smiling", "Smilling", "no column 'Smiling'; did you mean 'Smilling'"),
    ],
)
def test_celeba_unknown_value_or_name_is_refused(releases, old, new, message):
    root = releases.celeba()
    releases.edit(root / "list_attr_celeba.txt", old, new)
    with pytest.raises(UserError, match=message) as error:
        open_source("celeba", root)
    assert "list_attr_celeba.txt" in str(error.value)


def test_celeba_partition_is_checked(releases):
    root = releases.celeba()
    releases.edit(root / "list_eval_partition.txt", "000003.jpg 0", "000003.jpg 5")
    with pytest.raises(UserError, match="000003.jpg the unknown part '5'"):
        open_source("celeba", root)
    releases.edit(root / "list_eval_partition.txt", "000003.jpg 5\n", "")
    assert reasons(open_source("celeba", root))["000003.jpg"] == "no row in list_eval_partition"


@pytest.mark.parametrize("file", ["list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt"])
def test_celeba_missing_label_file_is_named(releases, file):
    root = releases.celeba()
    (root / file).unlink()
    with pytest.raises(UserError, match=f"{file}' is missing"):
        open_source("celeba", root)


def test_celeba_empty_folder(releases):
    root = releases.celeba()
    for picture in (root / "img_align_celeba").iterdir():
        picture.unlink()
    with pytest.raises(UserError, match="holds no pictures"):
        open_source("celeba", root)


def test_celeba_csv_copy_reads_the_same(releases, tmp_path):
    root = releases.celeba(count=8, parts="00001122")
    plain = open_source("celeba", root)
    lines = (root / "list_attr_celeba.txt").read_text().rstrip("\n").split("\n")
    rows = ["image_id," + ",".join(lines[1].split()), *(",".join(line.split()) for line in lines[2:])]
    (root / "list_attr_celeba.txt").unlink()
    releases.write(root / "list_attr_celeba.csv", "\n".join(rows) + "\n")
    parts = (root / "list_eval_partition.txt").read_text().split("\n")
    (root / "list_eval_partition.txt").unlink()
    releases.write(
        root / "list_eval_partition.csv", "image_id,partition\n" + "\n".join(",".join(p.split()) for p in parts)
    )
    copy = open_source("celeba", root)
    assert [(r.key, r.split, dict(r.labels)) for r in copy.records("all")] == [
        (r.key, r.split, dict(r.labels)) for r in plain.records("all")
    ]


# UTKFace


def test_utkface_names(releases):
    root = releases.utkface()
    for name in (
        "61_1_20170109150557335.jpg.chip.jpg",
        "200_0_0_2017.jpg.chip.jpg",
        "20_3_0_2017.jpg.chip.jpg",
        "20_0_9_2017.jpg.chip.jpg",
    ):
        releases.write(root / "UTKFace" / name, releases.jpeg(1))
    releases.write(root / "UTKFace" / "24_0_1_20170116220224657 .jpg.chip.jpg", releases.jpeg(2, 40, 40))
    source = open_source("utkface", root)
    faces = by_key(source)
    assert len(faces) == 13 and len(source.rejected) == 4
    face = faces["7_1_1_20170111191234501.jpg.chip.jpg"]
    assert face.age == 7 and face.labels["Female"] and face.labels["race:Black"] and not face.labels["race:White"]
    assert faces["24_0_1_20170116220224657 .jpg.chip.jpg"].age == 24
    assert "age 200" in reasons(source)["200_0_0_2017.jpg.chip.jpg"]


def test_utkface_near_duplicates_share_a_split(releases):
    root = releases.utkface(count=30)
    original = (root / "UTKFace" / "0_0_0_20170110191234500.jpg.chip.jpg").read_bytes()
    for i in range(20):
        releases.write(root / "UTKFace" / f"{20 + i}_1_3_2018010100000{i:02d}.jpg.chip.jpg", original)
    splits = Counter(r.split for r in open_source("utkface", root).records("all") if r.key.find("_2018") > 0)
    assert len(splits) == 1
    again = [r.split for r in open_source("utkface", root).records("all")]
    assert again == [r.split for r in open_source("utkface", root).records("all")]


def test_utkface_without_a_usable_name(tmp_path, releases):
    releases.write(tmp_path / "u" / "UTKFace" / "holiday.jpg", releases.jpeg(1))
    with pytest.raises(UserError, match="no usable face.*holiday.jpg"):
        open_source("utkface", tmp_path / "u")


# ExpW


def test_expw_boxes_and_labels(releases):
    root = releases.expw()
    source = open_source("expw", root)
    faces = by_key(source)
    face = faces["happy_man_1.jpg#0"]
    assert face.box == (5 + 20 - 28, 40 - 28, 5 + 20 + 28, 40 + 28)
    assert [n for n, v in face.labels.items() if v] == ["expression:fear"]
    for i in range(4):
        assert faces[f"happy_man_{i}.jpg#0"].split == faces[f"happy_man_{i}.jpg#1"].split


def test_expw_damage(releases):
    root = releases.expw()
    lst = root / "label" / "label.lst"
    good = lst.read_text()
    lst.write_text(
        "\ufeff" + good.replace("\n", "  \r\n").replace("happy_man_1.jpg", "./image/origin/happy_man_1.jpg")
        + "happy_man_0.jpg 0 20 5 45 60 55.5 0\n"  # duplicate of the first row
        + "happy_man_0.jpg 7 20 500 540 60 55.5 0\n"  # outside the picture
        + "happy_man_0.jpg 8 20 50 50 60 55.5 0\n"  # empty box
        + "happy_man_0.jpg 9 20 a 50 60 55.5 0\n"
        + "happy_man_0.jpg 10 nan 5 50 60 55.5 0\n"
        + "gone.jpg 0 20 5 45 60 55.5 0\n"
        + "short.jpg 0 20 5\n"
        + "happy_man_2.jpg 0 20 5 45 61 55.5 6\n"  # disagrees
    )  # fmt: skip
    releases.write(root / "image" / "origin" / "extra.jpg", releases.jpeg(9))
    source = open_source("expw", root)
    found = reasons(source)
    assert "duplicate" in found["happy_man_0.jpg#0"]
    assert "outside the 120x90 picture" in found["happy_man_0.jpg#7"]
    assert "empty" in found["happy_man_0.jpg#8"] and "four numbers" in found["happy_man_0.jpg#9"]
    assert "four numbers" in found["happy_man_0.jpg#10"]
    assert found["gone.jpg#0"] == "picture missing" and "4 columns, not 8" in found["short.jpg"]
    assert "disagree" in found["happy_man_2.jpg#0"] and "no row" in found["extra.jpg"]
    assert any("path prefix 'image/origin/'" in note for note in source.notes)
    assert len(source.records("all")) == 7
    lst.write_text(good.replace(" 3\n", " 9\n", 1))
    with pytest.raises(UserError, match="line 4 has the unknown expression '9'"):
        open_source("expw", root)


# FER2013


def test_fer2013_folders(releases):
    root = releases.fer2013()
    releases.write(root / "test" / "fear" / "PrivateTest_2.jpg", releases.jpeg(1, 48, 48))
    releases.write(root / "test" / "fear" / "PublicTest_4.jpg", releases.jpeg(2, 48, 48))
    faces = {
        key: (face.split, *(n for n, v in face.labels.items() if v))
        for key, face in by_key(open_source("fer2013", root)).items()
    }
    assert faces == {
        "train/angry/Training_3.jpg": ("train", "expression:angry"),
        "train/sad/Training_5.jpg": ("train", "expression:sad"),
        "validation/happy/PublicTest_8.jpg": ("val", "expression:happy"),
        "test/fear/PrivateTest_2.jpg": ("test", "expression:fear"),
        "test/fear/PublicTest_4.jpg": ("val", "expression:fear"),
    }
    releases.write(root / "test" / "contempt" / "x.jpg", releases.jpeg(3, 48, 48))
    with pytest.raises(UserError, match="no expression; they are angry, disgust"):
        open_source("fer2013", root)


@pytest.mark.parametrize(
    "name,columns", [("fer2013.csv", "emotion,pixels,Usage"), ("icml_face_data.csv", "emotion, Usage, pixels")]
)
def test_fer2013_table(releases, tmp_path, name, columns):
    pixels = np.arange(48 * 48) % 256
    rows = {"Training": "3", "PublicTest": "6", "PrivateTest": "0"}
    order = [column.strip() for column in columns.split(",")]

    def row(code, usage, values):
        cells = {"emotion": code, "Usage": usage, "pixels": " ".join(map(str, values))}
        return ",".join(cells[column] for column in order) + "\n"

    good = columns + "\n" + "".join(row(code, usage, pixels) for usage, code in rows.items())
    bad = row("1", "Training", pixels[:-1]) + row("1", "Training", [*pixels[:-1], 256])
    releases.write(tmp_path / name, good + bad)
    source = open_source("fer2013", tmp_path)
    assert {f.key: (f.split, *(n for n, v in f.labels.items() if v)) for f in source.records()} == {
        "Training_0": ("train", "expression:happy"),
        "PublicTest_1": ("val", "expression:neutral"),
        "PrivateTest_2": ("test", "expression:angry"),
    }
    assert {item.key for item in source.rejected} == {"Training_3", "Training_4"}
    picture = decode(source.records()[0].image)
    assert np.array_equal(picture[..., 0].ravel(), pixels) and picture.shape == (48, 48, 3)
    for changed, message in (
        (good.replace("\n6,", "\n7,"), "emotion '7'"),
        (good.replace("PublicTest", "Public"), "Usage 'Public'"),
    ):
        releases.write(tmp_path / name, changed)
        with pytest.raises(UserError, match=message):
            open_source("fer2013", tmp_path)


# FairFace


def test_fairface(releases):
    root = releases.fairface()
    source = open_source("fairface", root)
    faces = by_key(source)
    assert {r.split for k, r in faces.items() if k.startswith("val/")} == {"test"}
    assert "test" not in {r.split for k, r in faces.items() if k.startswith("train/")}
    assert faces["train/5.jpg"].labels["age:70+"] and not faces["train/5.jpg"].labels["age:0-2"]
    assert faces["train/3.jpg"].labels["race:Latino_Hispanic"] and faces["train/3.jpg"].labels["Male"]
    assert sum(name.startswith("age:") for name in faces["train/1.jpg"].labels) == 9


@pytest.mark.parametrize(
    "mangled,group", [("9-Mar", "3-9"), ("Mar-09", "3-9"), ("19-Oct", "10-19"), ("Oct-19", "10-19")]
)
def test_fairface_spreadsheet_dates_are_corrected_and_noted(releases, mangled, group):
    root = releases.fairface()
    releases.edit(root / "fairface_label_train.csv", f",{group},", f",{mangled},")
    source = open_source("fairface", root)
    assert any(f"age '{mangled}' read as '{group}'" in note for note in source.notes)
    key = "train/2.jpg" if group == "3-9" else "train/3.jpg"
    assert by_key(source)[key].labels[f"age:{group}"]


def test_fairface_damage(releases):
    root = releases.fairface()
    file = root / "fairface_label_train.csv"
    good = file.read_text()
    rows = good.rstrip("\n").split("\n")
    rows[1] = rows[1].replace("train/1.jpg,", " C:\\faces\\train\\1.jpg , ")
    rows[0] += ",source"
    rows[1:] = [row + ",web" for row in rows[1:]]
    rows += [rows[2], rows[3].replace("Male", "Female"), "train/77.jpg,3-9,Male,White,True,web", "train/8.jpg,3-9"]
    file.write_bytes(("\ufeff" + "\r\n".join(rows)).encode())
    source = open_source("fairface", root)
    found = reasons(source)
    assert "duplicate" in found["train/2.jpg"] and "disagree" in found["train/3.jpg"]
    assert found["train/77.jpg"] == "picture missing" and "2 columns, not 6" in found["train/8.jpg"]
    assert any("'source' left out" in n for n in source.notes) and any("path prefix" in n for n in source.notes)
    assert "train/1.jpg" in by_key(source)
    for old, new, message in (
        ("3-9", "4-9", "unknown age '4-9'"),
        ("Female", "F", "unknown gender 'F'"),
        ("Indian", "Martian", "unknown race 'Martian'"),
        ("race", "rac", "no column 'race'; did you mean 'rac'"),
    ):
        file.write_text(good.replace(old, new, 1))
        with pytest.raises(UserError, match=message):
            open_source("fairface", root)


def test_fairface_without_pictures(releases, tmp_path):
    releases.write(tmp_path / "f" / "fairface_label_train.csv", "file,age,gender,race\n")
    with pytest.raises(UserError, match="holds no pictures"):
        open_source("fairface", tmp_path / "f")


# MAAD-Face


def test_maad_face(releases):
    root = releases.maad_face()
    source = open_source("maad_face", root)
    faces = by_key(source)
    assert len(faces) == 24 and not source.rejected
    assert {r.split for r in faces.values() if int(r.identity) >= 12} == {"test"}
    for key, record in faces.items():
        assert record.identity == str(int(key[1:7])) and 0 < len(record.labels) < 48
        assert len(record.labels) == len(dict(record.labels)) == len(list(record.labels))
    header, row = (root / "MAAD_Face.csv").read_text().split("\n")[:2]
    stated = dict(zip(header.split(","), row.split(","), strict=True))
    labels = faces[stated["Filename"]].labels
    for name, value in list(stated.items())[2:]:
        assert labels.get(name) == {"1": True, "-1": False, "0": None}[value]
    # Both pictures of a person are on one side.
    for person in {r.identity for r in faces.values()}:
        assert len({r.split for r in faces.values() if r.identity == person}) == 1


def test_maad_face_damage(releases):
    root = releases.maad_face()
    file = root / "MAAD_Face.csv"
    good = file.read_text()
    rows = good.rstrip("\n").split("\n")
    file.write_text(
        "\n".join([*rows[:-1], rows[1], "n000099/0001_01.jpg" + rows[1][19:]]).replace("n000003/", "train/n000003/")
    )
    source = open_source("maad_face", root)
    found = reasons(source)
    assert "duplicate" in found["n000002/0000_01.jpg"] and found["n000099/0001_01.jpg"] == "picture missing"
    assert "no row" in found["n000013/0001_01.jpg"] and any("prefix 'train/'" in n for n in source.notes)
    file.write_text(good.replace(",1,", ",3,", 1))
    with pytest.raises(UserError, match="unknown value '3'"):
        open_source("maad_face", root)


# RAF-DB


def test_raf_db_aligned_and_csv(releases):
    root = releases.raf_db()
    source = open_source("raf_db", root)
    faces = by_key(source)
    assert len(faces) == 14 and faces["train_00001.jpg"].labels["expression:surprise"]
    assert {k[:4] for k, r in faces.items() if r.split == "test"} == {"test"}
    rows = (root / "EmoLabel" / "list_patition_label.txt").read_text().split("\n")
    (root / "EmoLabel" / "list_patition_label.txt").unlink()
    aligned = [row.replace(".jpg ", "_aligned.jpg,") for row in rows if row]
    releases.write(root / "labels.csv", "image,label\r\n" + "\r\n".join(aligned) + "\r\n")
    copy = open_source("raf_db", root)
    assert [(r.key, r.split, r.labels) for r in copy.records("all")] == [
        (r.key, r.split, r.labels) for r in source.records("all")
    ]


def test_raf_db_original_with_boxes(releases):
    root = releases.raf_db(original=True)
    (root / "Annotation" / "boundingbox" / "train_00002_boundingbox.txt").unlink()
    boxes = root / "Annotation" / "boundingbox"
    releases.write(boxes / "train_00003_boundingbox.txt", "1 2 three 4")
    releases.write(boxes / "train_00004_boundingbox.txt", "nan 2 30 40")
    releases.write(boxes / "train_00005_boundingbox.txt", "5000 5000 5040 5040")
    source = open_source("raf_db", root)
    faces = by_key(source)
    face = faces["train_00001.jpg"]
    assert np.allclose(face.box, (40.5 - 28, 55 - 35, 40.5 + 28, 55 + 35))
    assert face.labels["Male"] and face.labels["race:White"]
    assert "is missing" in reasons(source)["train_00002.jpg"] and "four numbers" in reasons(source)["train_00003.jpg"]
    assert "four numbers" in reasons(source)["train_00004.jpg"]
    assert "box lies outside the" in reasons(source)["train_00005.jpg"]
    assert "Male" not in faces["train_00006.jpg"].labels and faces["train_00006.jpg"].labels["race:Asian"]


def test_raf_db_damage(releases):
    root = releases.raf_db()
    plain = {key: dict(face.labels) for key, face in by_key(open_source("raf_db", root)).items()}
    rows = [row.split() for row in (root / "EmoLabel" / "list_patition_label.txt").read_text().split("\n") if row]
    (root / "EmoLabel" / "list_patition_label.txt").unlink()
    # The circulating copies: two files, folders before the names, another column, a mark at the start, Windows' line ends.
    for part in ("train", "test"):
        lines = [f"{i}, DATASET/{part}/{n} ,{code}" for i, (n, code) in enumerate(rows) if n.startswith(part)]
        releases.write(root / f"{part}_labels.csv", "\ufeff" + "\r\n".join([",image,label", *lines]) + "\r\n")
    source = open_source("raf_db", root)
    assert {key: dict(face.labels) for key, face in by_key(source).items()} == plain
    assert any("unknown column ''" in note for note in source.notes)
    assert any("path prefix 'DATASET/train/'" in note for note in source.notes)

    path = root / "train_labels.csv"
    other = "3" if rows[1][1] != "3" else "4"
    name = {i: rows[i][0] for i in range(3)}
    path.write_text(path.read_text() + f"9,{name[0]},{rows[0][1]}\n9,{name[1]},{other}\n9,train_99999.jpg,1\n")
    found = reasons(open_source("raf_db", root))
    assert "duplicate row" in found[name[0]] and "disagree" in found[name[1]]
    assert found["train_99999.jpg"] == "picture missing"

    releases.write(root / "Image" / "aligned" / "copy" / name[2].replace(".jpg", "_aligned.jpg"), releases.jpeg(1))
    with pytest.raises(UserError, match=f"both are picture '{name[2]}'"):
        open_source("raf_db", root)


def test_raf_db_unknown_code(releases):
    root = releases.raf_db()
    releases.edit(root / "EmoLabel" / "list_patition_label.txt", "train_00003.jpg 3", "train_00003.jpg 8")
    with pytest.raises(UserError, match="line 3 has the unknown expression '8'"):
        open_source("raf_db", root)


# CelebAMask-HQ


def test_celebamask_hq_merged_and_official_agree(releases):
    merged = open_source("celebamask_hq", releases.celebamask_hq()).records("all")
    official = open_source("celebamask_hq", releases.celebamask_hq(official=True)).records("all")
    assert len(merged) == len(official) == 4
    a, b = masks.read_mask(merged[0].mask), masks.read_mask(official[0].mask)
    assert np.array_equal(a, b) and set(np.unique(a)) == {0, 1, 13}


def test_celebamask_hq_unpaired_files_are_named(releases):
    root = releases.celebamask_hq()
    (root / "masks" / "face0.png").unlink()
    (root / "images" / "face1.jpg").unlink()
    found = reasons(open_source("celebamask_hq", root))
    assert found == {"face0.jpg": "segmentation map missing", "face1": "picture missing"}
    official = releases.celebamask_hq(official=True)
    releases.write(official / "CelebAMask-HQ-mask-anno" / "0" / "00000_beard.png", b"")
    assert "19 classes" in reasons(open_source("celebamask_hq", official))["0/00000_beard.png"]


def test_celebamask_hq_attributes(releases):
    root = releases.celebamask_hq(official=True)
    lines = (releases.celeba(count=4) / "list_attr_celeba.txt").read_text()
    for i in range(4):
        lines = lines.replace(f"{i + 1:06d}.jpg", f"{i * 1000}.jpg")
    releases.write(root / "CelebAMask-HQ-attribute-anno.txt", lines)
    assert all(len(r.labels) == 41 for r in open_source("celebamask_hq", root).records("all"))


# The real releases


@pytest.mark.real_data
@pytest.mark.parametrize("name,faces,rejected", [("utkface", 20342, 3), ("celebamask_hq", 843, 0), ("expw", 4895, 0)])
def test_real_releases(shared_data, name, faces, rejected):
    source = open_source(name, shared_data / name)
    assert (len(source.records("all")), len(source.rejected)) == (faces, rejected)
    shares = [len(source.records(split)) / faces for split in ("train", "val", "test")]
    assert np.allclose(shares, (0.8, 0.1, 0.1), atol=0.03)


@pytest.mark.real_data
def test_real_fer2013(shared_data):
    source = open_source("fer2013", shared_data / "fer2013")
    assert (len(source.records("train")), len(source.records("val")), len(source.rejected)) == (28709, 3589, 0)


@pytest.mark.real_data
def test_real_celeba(shared_data):
    annotated = celeba.read_annotations(shared_data / "celeba").records()
    assert len(annotated) == 202599
    assert abs(np.mean([face.labels["Smiling"] for face in annotated]) - 0.482) < 1e-3
    source = open_source("celeba", shared_data / "celeba")
    assert len(source.records("all")) == 8580 and Counter(i.reason for i in source.rejected) == {
        "picture missing": 194019
    }
    people = {split: {r.identity for r in source.records(split)} for split in ("train", "val", "test")}
    assert (
        not people["train"] & people["test"]
        and not people["val"] & people["test"]
        and not people["train"] & people["val"]
    )
