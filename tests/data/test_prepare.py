import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from fi_jax.cli.main import main
from fi_jax.data import prepare as prepare_module
from fi_jax.data import shards
from fi_jax.data.datasets import open_source
from fi_jax.data.examples import fingerprint, make_example
from fi_jax.data.prepare import Maps, prepare
from fi_jax.errors import UserError
from fi_jax.faces.map_cache import cached_map
from fi_jax.faces.masks import read_mask, write_mask
from fi_jax.labels.registry import vocabulary


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "name", ["celeba", "utkface", "expw", "fer2013", "fairface", "maad_face", "raf_db", "celebamask_hq"]
)
def test_prepared_set_yields_the_same_examples_in_the_same_order(releases, tmp_path, name):
    root = getattr(releases, name)()
    source = open_source(name, root)
    manifest, worked = prepare(source, tmp_path / "out", faces_per_shard=5)
    assert worked and len(manifest["shards"]) == -(-manifest["faces"] // 5)
    copy = open_source(name, tmp_path / "out")
    words = vocabulary("all")
    for split in ("train", "val", "test", "all"):
        released, prepared = source.records(split), copy.records(split)
        assert len(released) == len(prepared) == (manifest["faces"] if split == "all" else manifest["splits"][split])
        for a, b in zip(released, prepared, strict=True):
            assert (a.key, a.split, dict(a.labels), a.age, a.box, a.identity) == (
                b.key,
                b.split,
                dict(b.labels),
                b.age,
                b.box,
                b.identity,
            )
            assert a.image.read_bytes() == b.image.read_bytes()
            x, y = make_example(a, words, 16), make_example(b, words, 16)
            assert all(np.array_equal(x[key], y[key]) for key in x)


def test_second_run_does_nothing(releases, tmp_path):
    root = releases.celeba()
    prepare(open_source("celeba", root), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    _, worked = prepare(open_source("celeba", root), tmp_path / "out")
    assert not worked and before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("stop_at", range(1, 9))
def test_stopped_anywhere_it_continues_to_the_same_bytes(releases, tmp_path, monkeypatch, stop_at):
    source = open_source("celeba", releases.celeba(count=14))
    prepare(source, tmp_path / "whole", faces_per_shard=4)
    writes = 0

    def dying(real):
        def write(*args):
            nonlocal writes
            writes += 1
            if writes == stop_at:
                raise KeyboardInterrupt
            return real(*args)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", dying(shards.write_shard))
        patch.setattr(prepare_module, "write_bytes", dying(prepare_module.write_bytes))
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", faces_per_shard=4)
    if stop_at > 2:
        with pytest.raises(UserError, match="not finished"):
            open_source("celeba", tmp_path / "out")
    prepare(source, tmp_path / "out", faces_per_shard=4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_parts_and_processes_write_the_same(releases, tmp_path):
    source = open_source("celeba", releases.celeba(count=14))
    prepare(source, tmp_path / "whole", faces_per_shard=3)
    assert prepare(source, tmp_path / "out", faces_per_shard=3, part=(1, 3))[0] is None
    assert prepare(source, tmp_path / "out", faces_per_shard=3, part=(0, 3), workers=2)[0] is None
    (tmp_path / "out" / "faces-00003.json").write_text("{")  # Damaged meanwhile: written anew.
    with pytest.raises(UserError, match="not finished"):
        open_source("celeba", tmp_path / "out")
    assert prepare(source, tmp_path / "out", faces_per_shard=3, part=(2, 3))[0] is None
    assert prepare(source, tmp_path / "out", faces_per_shard=3)[0]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_leaves_no_shard(releases, tmp_path):
    source = open_source("celeba", releases.celeba(count=14))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match="faces-00000.array_record"):
            prepare(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".preparing.json"]
    assert prepare(source, tmp_path / "out")[0]


def test_fingerprint_knows_the_faces_and_not_their_folder(releases, tmp_path):
    root = releases.celeba()
    plain = fingerprint(open_source("celeba", root).records())
    shutil.copytree(root, tmp_path / "copy")
    assert fingerprint(open_source("celeba", tmp_path / "copy").records()) == plain
    prepare(open_source("celeba", root), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b = (fingerprint(open_source("celeba", tmp_path / name).records()) for name in "ab")
    assert a == b
    releases.edit(root / "list_attr_celeba.txt", " -1", "  1")
    assert fingerprint(open_source("celeba", root).records()) != plain
    (tmp_path / "copy" / "img_align_celeba" / "000003.jpg").write_bytes(releases.jpeg(99, 218, 178))
    assert fingerprint(open_source("celeba", tmp_path / "copy").records()) != plain


def test_manifest_names_what_was_left_out(releases, tmp_path):
    root = releases.celeba()
    (root / "img_align_celeba" / "000002.jpg").unlink()
    (root / "img_align_celeba" / "000003.jpg").write_bytes(b"\xff\xd8 not really")
    manifest, _ = prepare(open_source("celeba", root), tmp_path / "out")
    assert manifest["num_rejected"] == 2 and manifest["faces"] == 10
    assert manifest["rejected"].pop("picture missing") == ["000002.jpg"]
    ((reason, keys),) = manifest["rejected"].items()
    assert keys == ["000003.jpg"] and "000003.jpg" in reason
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["splits"] == manifest["splits"]
    with np.load(tmp_path / "out" / "counts.npz") as counts:
        names = list(counts["names"])
        smiling = names.index("Smiling")
        train = open_source("celeba", tmp_path / "out").records("train")
        assert counts["m"][smiling, smiling] == sum(face.labels["Smiling"] for face in train)


def test_other_files_or_a_foreign_folder_are_refused(releases, tmp_path):
    root = releases.celeba()
    prepare(open_source("celeba", root), tmp_path / "out")
    with pytest.raises(UserError, match="other files or with other settings"):
        prepare(open_source("celeba", root), tmp_path / "out", faces_per_shard=3)
    with pytest.raises(UserError, match="holds the data set 'celeba', not 'utkface'"):
        open_source("utkface", tmp_path / "out")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty"):
        prepare(open_source("celeba", root), tmp_path / "home")


def test_damaged_shards_are_noticed(releases, tmp_path):
    prepare(open_source("celeba", releases.celeba()), tmp_path / "out")
    shard = tmp_path / "out" / "faces-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="faces-00000.array_record' is missing or cut short"):
        open_source("celeba", tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json' is damaged"):
        open_source("celeba", tmp_path / "out")


def test_parsed_maps_travel_as_crops(releases, tmp_path):
    drawn = np.full((8, 8), 13, np.uint8)
    source = open_source("expw", releases.expw())
    for folder in ("weights1", "weights2"):
        for face in source.records():
            write_mask(Path(cached_map(tmp_path / folder, face.image.read_bytes(), face.box)), drawn)
    asked = []
    prepare(source, tmp_path / "out", Maps(tmp_path / "weights1", asked.append))
    assert [len(faces) for faces in asked] == [8]
    with pytest.raises(UserError, match="other files or with other settings"):
        prepare(source, tmp_path / "out", Maps(tmp_path / "weights2", asked.append))
    for face in open_source("expw", tmp_path / "out").records("all"):
        assert np.array_equal(read_mask(face.mask), drawn)
        assert (make_example(face, vocabulary("expw"), 24)["mask"] == 13).all()


def test_command(releases, tmp_path, capsys):
    root, out = str(releases.celeba()), str(tmp_path / "out")
    assert main(["prepare", "celeba", "--data-root", root, "--out", out, "--parser", "none"]) == 0
    assert "12 faces" in capsys.readouterr().out
    assert main(["prepare", "celeba", "--data-root", root, "--out", out, "--parser", "none"]) == 0
    assert "nothing done" in capsys.readouterr().out
    for part in ("2/2", "a/2", "1"):
        assert main(["prepare", "celeba", "--data-root", root, "--out", out, "--part", part]) == 2
        assert "--part is" in capsys.readouterr().err
    for bad in (["celebaa", "--data-root", root], ["utkface", "--data-root", str(tmp_path / "nowhere")], ["celeba"]):
        assert main(["prepare", *bad, "--out", str(tmp_path / "other")]) == 2
        error = capsys.readouterr().err
        assert len(error.strip().split("\n")) == 1 and "Traceback" not in error
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_command_makes_maps(releases, tmp_path, monkeypatch, capsys):
    """With a parser of random weights: what the maps show does not matter here, that they travel does."""
    import jax
    import jax.numpy as jnp

    from fi_jax.faces.parser import FaceParser, parse_crop, save_parser
    from fi_jax.files import cache_folder
    from fi_jax.models.segformer import Segformer, SegformerConfig

    config = SegformerConfig(
        depths=(1, 1, 1, 1), hidden_sizes=(4, 8, 8, 8), num_heads=(1, 1, 1, 1), decoder_hidden_size=8
    )
    variables = jax.jit(Segformer(config).init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    parser = FaceParser(config, 32, variables, {})
    save_parser(tmp_path / "parser", parser, "float32")
    root, out = releases.expw(), tmp_path / "out"
    command = ["prepare", "expw", "--data-root", str(root), "--out", str(out), "--parser", str(tmp_path / "parser")]
    monkeypatch.setattr("fi_jax.data.parsing._CHUNK", 4)
    jax.config.update("jax_compilation_cache_dir", None)
    assert main([*command, "--workers", "1"]) == 0
    # Its processes are given the folder; without it each would compile for seconds.
    assert jax.config.jax_compilation_cache_dir == str(cache_folder() / "xla")
    said = capsys.readouterr().out
    assert "8 faces have no segmentation map of their own. Parsing them takes up to about " in said
    assert "--no-masks skips it" in said
    face = open_source("expw", out).records("all")[3]
    example = make_example(face, vocabulary("expw"), 32)
    expected = parse_crop(parser, example["image"])
    assert (example["mask"] == expected).mean() > 0.99
