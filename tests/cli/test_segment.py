import io
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data as pictures

from fi_jax.cli.main import main
from fi_jax.errors import UserError
from fi_jax.faces import map_cache, picture_map
from fi_jax.faces import parser as parsing
from fi_jax.faces.masks import read_mask
from fi_jax.labels.face_parts import CLASSES
from fi_jax.models.segformer import Segformer, SegformerConfig
from fi_jax.pictures.crop import load_square
from fi_jax.weights.bundle import BUNDLED

TINY = SegformerConfig(
    depths=(1, 1),
    hidden_sizes=(8, 16),
    num_heads=(1, 2),
    sr_ratios=(4, 2),
    patch_sizes=(5, 3),
    strides=(2, 2),
    mlp_ratios=(2, 2),
    decoder_hidden_size=16,
)
needs_bundle = pytest.mark.skipif(
    not (BUNDLED / "parser" / parsing.WEIGHTS).exists(),
    reason="no face parser is bundled; train one with fi-jax train-parser",
)


@pytest.fixture(scope="module")
def parser():
    """Untrained: it shows geometry and files, not knowledge of faces."""
    variables = jax.jit(Segformer(TINY).init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
    return parsing.FaceParser(TINY, 32, jax.device_get(variables), {})


@pytest.fixture(scope="module")
def folder(parser, tmp_path_factory):
    path = tmp_path_factory.mktemp("parser")
    parsing.save_parser(path, parser, "float32")
    return path


@pytest.fixture
def portrait(tmp_path):
    path = tmp_path / "portrait.jpg"
    Image.fromarray(pictures.astronaut()).save(path, quality=92)
    return path


def always(parser, index):
    """The parser, turned into one that answers one class everywhere."""
    head = parser.variables["params"]["head"]
    bias = np.where(np.arange(19) == index, 1.0, 0.0).astype(np.float32)
    classifier = {"kernel": np.zeros_like(head["classifier"]["kernel"]), "bias": bias}
    params = {**parser.variables["params"], "head": {**head, "classifier": classifier}}
    return replace(parser, variables={**parser.variables, "params": params})


def test_the_map_has_the_pictures_size_and_is_background_outside_the_crop(parser):
    skin = always(parser, CLASSES.index("skin"))
    image = np.zeros((60, 100, 3), np.uint8)
    mask = picture_map.map_of_picture(skin, image, (10, 20, 40, 50))
    expected = np.zeros((60, 100), np.uint8)
    expected[20:50, 10:40] = 1
    np.testing.assert_array_equal(mask, expected)
    # A box that is not square is squared; one that overruns is cut at the picture's edge.
    assert (picture_map.map_of_picture(skin, image, (70, 30, 130, 60)) == 1).sum() == 30 * 45
    assert (picture_map.map_of_picture(skin, image, (0, 0, 100, 60)) == 1).all()


def test_large_crops_are_classified_at_a_bounded_size(parser, monkeypatch):
    monkeypatch.setattr(picture_map, "MAX_SIDE", 50)
    mask = picture_map.map_of_picture(always(parser, 13), np.zeros((130, 130, 3), np.uint8), (10, 10, 120, 120))
    assert (mask[10:120, 10:120] == 13).all() and (mask == 13).sum() == 110**2


def test_what_does_not_parse_as_a_face_is_none(parser):
    image = pictures.astronaut()
    assert picture_map.faces_in(always(parser, CLASSES.index("cloth")), image) == []
    mask = np.full((64, 64), CLASSES.index("skin"), np.uint8)
    assert not picture_map.looks_like_a_face(mask)
    mask[30:34, 20:30], mask[40:44, 20:40] = CLASSES.index("l_eye"), CLASSES.index("u_lip")
    assert picture_map.looks_like_a_face(mask)


def test_segment_writes_palette_maps(folder, portrait, tmp_path, capsys):
    out = tmp_path / "maps"
    assert (
        main(
            [
                "segment",
                str(portrait),
                "--out",
                str(out),
                "--box",
                "150,50,290,190",
                "--parser",
                str(folder),
                "--colour",
            ]
        )
        == 0
    )
    mask = read_mask(out / "portrait.png")
    assert mask.shape == (512, 512)
    outside = mask.copy()
    outside[50:190, 150:290] = 0
    assert not outside.any()
    with Image.open(out / "portrait.png") as image:
        assert image.mode == "P"
    with Image.open(out / "portrait.colour.png") as image:
        assert image.size == (512, 512) and image.mode == "RGB"
    assert "portrait.jpg -> " in capsys.readouterr().out


def test_bad_pictures_are_named_and_the_others_are_parsed(folder, portrait, tmp_path, capsys):
    text, cut = tmp_path / "notes.jpg", tmp_path / "cut.jpg"
    text.write_text("not a picture")
    cut.write_bytes(portrait.read_bytes()[:3000])
    missing = tmp_path / "missing.png"
    out = tmp_path / "maps"
    arguments = [str(p) for p in (text, cut, missing, portrait)]
    assert main(["segment", *arguments, "--out", str(out), "--box", "full", "--parser", str(folder)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all(line.startswith("fi-jax: ") for line in errors)
    for name, line in zip(("notes.jpg", "cut.jpg", "missing.png", "3 of 4 pictures failed"), errors, strict=True):
        assert name in line
    assert [p.name for p in out.iterdir()] == ["portrait.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "1,2,3"], "is not left,top,right,bottom"),
        (["--box", "9,9,1,1"], "is empty"),
        (["--parser", "no/such/folder"], "no/such/folder"),
        (["--bocks", "full"], "did you mean '--box'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(folder, portrait, tmp_path, capsys, arguments, message):
    given = [str(portrait), "--out", str(tmp_path / "maps"), *arguments]
    assert main(["segment", *given, *([] if "--parser" in arguments else ["--parser", str(folder)])]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


def test_no_face_is_said(folder, tmp_path, capsys):
    path = tmp_path / "coffee.png"
    Image.fromarray(pictures.coffee()).save(path)
    assert main(["segment", str(path), "--out", str(tmp_path / "maps"), "--parser", str(folder)]) == 2
    assert "no face found in" in capsys.readouterr().err


def test_two_pictures_of_one_name_are_refused(folder, tmp_path, capsys):
    names = [str(tmp_path / "a" / "x.jpg"), str(tmp_path / "b" / "x.png")]
    assert main(["segment", *names, "--out", str(tmp_path / "maps"), "--parser", str(folder)]) == 2
    assert "two pictures would both be written" in capsys.readouterr().err


def test_cache_is_filled_once_in_order_and_unreadable_pictures_are_listed(parser, tmp_path):
    from fi_jax.data.records import FaceRecord

    def jpeg(seed):
        buffer = io.BytesIO()
        noise = np.random.default_rng(seed).integers(0, 255, (40, 50, 3))
        Image.fromarray(noise.astype(np.uint8)).save(buffer, "JPEG")
        return buffer.getvalue()

    records = [FaceRecord("toy", f"{i}.jpg", "train", jpeg(i), box=(5, 5, 35, 35)) for i in range(7)]
    records.insert(3, FaceRecord("toy", "bad.jpg", "train", b"\xff\xd8 no picture"))

    failed = map_cache.fill_cache(parser, records, tmp_path, batch_size=3)
    assert [record.key for record, _ in failed] == ["bad.jpg"]
    for record in records[:3]:
        crop = load_square(record.image, record.box, 32)
        path = Path(map_cache.cached_map(tmp_path, record.image, record.box))
        np.testing.assert_array_equal(read_mask(path), parsing.parse_crop(parser, crop))
    assert len(list(tmp_path.rglob("*.png"))) == 7
    assert [face.key for face in map_cache._without_map(records, tmp_path)] == ["bad.jpg"]
    # A map of another face, put there by hand, and one that is damaged: said where it is read, made again otherwise.
    paths = [Path(map_cache.cached_map(tmp_path, record.image, record.box)) for record in records[:3]]
    paths[1].write_bytes(paths[0].read_bytes())
    paths[2].write_bytes(paths[2].read_bytes()[:-40])
    for record in records[1:3]:
        with pytest.raises(UserError, match=r"not of this face, or damaged; delete it, and it is made again"):
            map_cache.load_mask(record, 16, tmp_path)
    lacking = list(map_cache._without_map(records, tmp_path))
    assert [face.key for face in lacking] == ["1.jpg", "2.jpg", "bad.jpg"]
    map_cache.fill_cache(parser, lacking, tmp_path, batch_size=3)
    assert [face.key for face in map_cache._without_map(records, tmp_path)] == ["bad.jpg"]


def test_a_full_disk_ends_the_parsing_at_once(tmp_path, monkeypatch):
    from fi_jax.data.records import FaceRecord

    parsed = []

    def parse_faces(parser, faces, *_):
        for face in faces:
            parsed.append(face)
            time.sleep(0.01)
            yield face, np.zeros((8, 8), np.uint8)

    def full(path, mask):
        raise UserError(f"cannot write '{path}' (No space left on device)")

    monkeypatch.setattr("fi_jax.faces.parser.parse_faces", parse_faces)
    monkeypatch.setattr(map_cache, "keep_map", full)
    faces = [FaceRecord("toy", f"{i}.jpg", "train", b"x") for i in range(1000)]
    with pytest.raises(UserError, match="No space left"):
        map_cache.fill_cache(None, faces, tmp_path)
    assert len(parsed) < 100


def test_maps_are_told_apart_by_content_and_box_and_made_once(parser, folder, tmp_path, monkeypatch):
    """Two roots with the same names do not share maps; a read-only cache does not stop the work."""
    from fi_jax.config import DataConfig
    from fi_jax.data.records import FaceRecord

    faces = []
    for root in ("a", "b"):
        path = tmp_path / root / "same.png"
        path.parent.mkdir()
        noise = np.random.default_rng(ord(root)).integers(0, 255, (40, 50, 3))
        Image.fromarray(noise.astype(np.uint8)).save(path)
        faces += [FaceRecord("toy", "same.png", "train", path, box=box) for box in (None, (5, 5, 35, 35))]
    lines = []
    monkeypatch.setattr("fi_jax.faces.map_cache.log.info", lines.append)
    monkeypatch.setattr("fi_jax.faces.map_cache.log.warning", lines.append)
    data = map_cache.with_maps(faces, DataConfig(mask_cache=str(tmp_path / "cache")), str(folder))
    maps = [map_cache.load_mask(face, 32, data.mask_cache) for face in faces]
    for face, mask in zip(faces, maps, strict=True):
        np.testing.assert_array_equal(mask, parsing.parse_crop(parser, load_square(face.image, face.box, 32)))
    assert len({mask.tobytes() for mask in maps}) == 4 and lines[0].startswith("parsing 4 faces")
    assert map_cache.with_maps(faces, DataConfig(mask_cache=str(tmp_path / "cache")), str(folder)) == data
    assert len(lines) == 1

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    blocked = DataConfig(mask_cache=str(tmp_path / "a" / "same.png" / "cache"))
    data = map_cache.with_maps(faces[:1], blocked, str(folder))
    np.testing.assert_array_equal(map_cache.load_mask(faces[0], 32, data.mask_cache), maps[0])
    assert any("cannot be written" in line for line in lines)


@needs_bundle
def test_bundled_parser_parses_the_portrait(portrait, tmp_path):
    assert main(["segment", str(portrait), "--out", str(tmp_path)]) == 0
    mask = read_mask(tmp_path / "portrait.png")
    # Points read off the picture by eye.
    for part, (x, y) in {"skin": (200, 130), "hair": (190, 60), "nose": (225, 120), "background": (20, 20)}.items():
        assert CLASSES[mask[y, x]] == part
    rows, columns = np.nonzero(mask == CLASSES.index("l_eye"))
    right_columns = np.nonzero(mask == CLASSES.index("r_eye"))[1]
    assert columns.mean() > right_columns.mean() and 85 < rows.mean() < 125


@needs_bundle
def test_bundle_is_small():
    assert (BUNDLED / "parser" / parsing.WEIGHTS).stat().st_size < 4e6


@needs_bundle
def test_bundle_states_its_scores():
    info = parsing.load_parser().info
    if "cross_validation" not in info:
        pytest.skip("the bundled parser was not cross-validated (fi-jax train-parser --only-validate)")
    scores = info["cross_validation"]
    assert scores["mean"] >= 0.6
    # The card shows these very numbers, each class's and both means.
    card = (Path(__file__).parents[2] / "docs" / "parser.md").read_text()
    for name, value in scores["iou"].items():
        assert f"| {name} | {scores['share_of_pictures'][name]:.0%} | {value:.1%} |" in card
    assert all(f"**{scores[name]:.1%}**" in card for name in ("mean", "mean_frequent"))


def test_unknown_bundles_are_refused(tmp_path):
    with pytest.raises(UserError, match="no face parser in"):
        parsing.load_parser(str(tmp_path))


def test_neither_pictures_nor_files_of_others_are_overwritten(folder, tmp_path, capsys):
    picture, other = tmp_path / "a.png", tmp_path / "out" / "b.png"
    other.parent.mkdir()
    for path in (picture, other, tmp_path / "b.jpg"):
        Image.fromarray(pictures.astronaut()).save(path)
    before = [path.read_bytes() for path in (picture, other)]
    run = ["--box", "full", "--parser", str(folder)]
    assert main(["segment", str(picture), "--out", str(tmp_path), *run]) == 2
    assert f"'{picture}' is read and would be overwritten" in capsys.readouterr().err
    assert main(["segment", str(tmp_path / "b.jpg"), "--out", str(tmp_path / "out"), *run]) == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert before == [path.read_bytes() for path in (picture, other)]
    # Its own maps are made again.
    for _ in range(2):
        assert main(["segment", str(picture), "--out", str(tmp_path / "out"), "--colour", *run]) == 0
    clash = ["segment", str(tmp_path / "x.jpg"), str(tmp_path / "x.colour.jpg"), "--out", str(tmp_path / "out")]
    assert main([*clash, "--colour"]) == 2
    assert "would both be written to" in capsys.readouterr().err


def test_an_out_that_is_not_a_folder_is_one_line(folder, portrait, tmp_path, capsys, monkeypatch):
    run = ["--box", "full", "--parser", str(folder)]
    for out in (portrait, portrait / "maps"):
        assert main(["segment", str(portrait), "--out", str(out), *run]) == 2
        assert "is a file; give a folder" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert main(["segment", str(portrait), "--out", str(tmp_path / "maps"), *run]) == 2
    assert "cannot write into" in capsys.readouterr().err


def test_thin_pictures_have_no_face_and_huge_boxes_are_clipped(folder, portrait, tmp_path, capsys):
    thin = []
    for shape in ((4000, 1), (2, 40_000), (1, 28_000)):
        thin.append(tmp_path / f"{shape[0]}.png")
        Image.new("RGB", shape[::-1]).save(thin[-1])
    out = ["--out", str(tmp_path / "maps"), "--parser", str(folder)]
    assert main(["segment", *map(str, thin), *out]) == 2
    assert capsys.readouterr().err.count("no face found in") == 3
    assert main(["segment", *map(str, thin), str(portrait), *out, "--box", "0,0,1e9,1e9"]) == 0
    assert read_mask(tmp_path / "maps" / "2.png").shape == (2, 40_000)
    assert read_mask(tmp_path / "maps" / "portrait.png").shape == (512, 512)
