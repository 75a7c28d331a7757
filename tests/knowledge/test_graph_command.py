"""`fi-jax graph` on a small release of CelebA's form."""

import json

import numpy as np
import pytest

from fi_jax.cli.main import main
from fi_jax.labels.registry import vocabulary

NAMES = vocabulary("celeba").names


@pytest.fixture
def release(tmp_path):
    rng = np.random.default_rng(0)
    values = np.where(rng.random((60, 40)) < 0.5, 1, -1)
    keys = [f"{i:06d}.jpg" for i in range(1, 61)]
    rows = [f"{key} {' '.join(map(str, row))}" for key, row in zip(keys, values, strict=True)]
    root = tmp_path / "celeba"
    root.mkdir()
    (root / "list_attr_celeba.txt").write_text("\n".join(["60", " ".join(NAMES), *rows]) + "\n")
    (root / "list_eval_partition.txt").write_text(
        "".join(f"{key} {0 if i < 40 else 2}\n" for i, key in enumerate(keys))
    )
    return root, values


def test_it_counts_the_training_split_and_saves(release, tmp_path, capsys):
    root, values = release
    out = tmp_path / "out"
    assert main(["graph", "celeba", "--data-root", str(root), "--out", str(out), "--tau", "0.5", "--rules"]) == 0
    saved = np.load(out / "graph.npz")
    true = (values[:40] > 0).astype(int)
    np.testing.assert_array_equal(saved["m"], true.T @ true)
    assert tuple(saved["names"]) == NAMES
    np.testing.assert_allclose(saved["graph"].sum(1), 1, atol=1e-6)
    text = json.loads((out / "graph.json").read_text())
    assert text["faces"] == 40 and text["num_edges"] == saved["c"].sum() == len(text["edges"])
    assert (out / "graph.png").read_bytes().startswith(b"\x89PNG") and (out / "rules.md").exists()
    assert sorted(p.name for p in out.iterdir()) == ["graph.json", "graph.npz", "graph.png", "rules.md"]
    assert f"{text['num_edges']} edges" in capsys.readouterr().out


def test_figure_graph_reads_what_graph_writes(release, tmp_path, capsys):
    root, _ = release
    out, picture = tmp_path / "out", str(tmp_path / "graph.png")
    assert main(["graph", "celeba", "--data-root", str(root), "--out", str(out), "--tau", "0.5"]) == 0
    assert main(["figure", "graph", str(out / "graph.npz"), "--out", picture]) == 0
    # Of the first version, which named its labels otherwise.
    arrays = dict(np.load(out / "graph.npz"))
    np.savez(tmp_path / "old.npz", labels=arrays.pop("names"), **arrays)
    assert main(["figure", "graph", str(tmp_path / "old.npz"), "--out", picture]) == 0
    (tmp_path / "damaged.npz").write_bytes((out / "graph.npz").read_bytes()[:2000])
    np.savez(tmp_path / "other.npz", names=arrays["c"][:3], graph=arrays["c"])
    capsys.readouterr()
    for name, message in (("damaged", "is not a graph"), ("missing", "does not exist"), ("other", "no matrix 'graph'")):
        assert main(["figure", "graph", str(tmp_path / f"{name}.npz"), "--out", picture]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["graph", "celebaa", "--data-root", "."], "did you mean 'celeba'"),
        (["graph", "celeba", "--data-root", "nowhere"], "nowhere"),
        (["graph", "celeba", "--data-root", ".", "--tau", "1.5"], "tau"),
        (["graph", "celeba", "--data-root", ".", "--vocabulary", "face"], "did you mean 'faces'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists()


def test_a_vocabulary_the_set_does_not_annotate(release, tmp_path, capsys):
    root, _ = release
    arguments = ["graph", "celeba", "--data-root", str(root), "--vocabulary", "expw", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "states no label" in capsys.readouterr().err


def test_its_own_files_are_replaced_those_of_others_never(release, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["graph", "celeba", "--data-root", str(release[0]), "--out", str(out), "--rules"]
    assert main(command) == main(command) == 0
    for name in ("graph.npz", "graph.json", "graph.png", "rules.md"):
        ours = (out / name).read_bytes()
        (out / name).write_bytes(b"precious")
        assert main(command) == 2 and (out / name).read_bytes() == b"precious"
        assert f"{name}' exists and was not written by this command" in capsys.readouterr().err
        (out / name).write_bytes(ours)
