"""The graph from counts: the paper's formulas, streaming, masks, the known traps."""

from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.config import KnowledgeConfig
from fi_jax.knowledge import correlation
from fi_jax.knowledge.correlation import (
    adjacency,
    build_adjacency,
    build_graph,
    conditional,
    empty,
    merge,
    reweight,
    shuffled_adjacency,
    update,
)

CELEBA = Path(__file__).parents[3] / "shared" / "data" / "celeba"


def random_faces(seed: int, faces: int, labels: int):
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.1, 0.9, labels)
    true = (rng.random((faces, labels)) < base).astype(np.float32)
    return true, rng.random((faces, labels)) < 0.7


def counted(labels, known):
    return update(empty(labels.shape[1]), labels, known)


def by_hand(labels, known):
    """The definitions, face by face."""
    n = labels.shape[1]
    m, seen = np.zeros((n, n), int), np.zeros((n, n), int)
    for y, k in zip(labels, known, strict=True):
        for i in range(n):
            for j in range(n):
                seen[i, j] += k[i] and y[i] >= 0.5 and k[j]
                m[i, j] += k[i] and y[i] >= 0.5 and k[j] and y[j] >= 0.5
    return m, seen


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.integers(1, 30), st.integers(1, 6), st.data())
def test_streaming_merging_and_batch_agree(seed, faces, n, data):
    labels, known = random_faces(seed, faces, n)
    whole = counted(labels, known)
    m, seen = by_hand(labels, known)
    np.testing.assert_array_equal(whole.m, m)
    np.testing.assert_array_equal(whole.n, seen)
    cut = data.draw(st.integers(0, faces))
    cut2 = data.draw(st.integers(cut, faces))
    parts = [counted(labels[s], known[s]) for s in (slice(cut), slice(cut, cut2), slice(cut2, None))]
    for merged in (merge(merge(*parts[:2]), parts[2]), merge(parts[0], merge(parts[2], parts[1]))):
        jax.tree.map(np.testing.assert_array_equal, merged, whole)


def test_without_masks_this_is_the_papers_m_over_n():
    labels, known = random_faces(0, 200, 5)
    known[:] = True
    p = conditional(counted(labels, known))
    n_i = labels.sum(0)
    np.testing.assert_allclose(p, (labels.T @ labels) / n_i[:, None], rtol=1e-6)


def test_unknown_labels_never_count():
    labels, known = random_faces(1, 50, 4)
    noise = np.where(known, labels, 1 - labels)
    jax.tree.map(np.testing.assert_array_equal, counted(labels, known), counted(noise, known))


def test_labels_never_annotated_together_are_not_connected_even_at_tau_0():
    labels = np.ones((10, 3), np.float32)
    known = np.array([[True, True, False]] * 5 + [[False, False, True]] * 5)
    p = conditional(counted(labels, known))
    c = adjacency(p, 0.0)
    assert np.isfinite(p).all()
    np.testing.assert_array_equal(c, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_soft_labels_count_from_a_half():
    counts = counted(np.array([[0.5, 0.49, 1.0]]), np.ones((1, 3), bool))
    np.testing.assert_array_equal(counts.m, [[1, 0, 1], [0, 0, 0], [1, 0, 1]])


def test_the_diagonal_is_zeroed_before_the_threshold_and_nothing_is_transposed():
    # 0 implies 1; 1 is common and says little of 0.
    labels = np.array([[1, 1]] * 1 + [[0, 1]] * 9, np.float32)
    p = conditional(counted(labels, np.ones((10, 2), bool)))
    np.testing.assert_allclose(p, [[1, 1], [0.1, 1]])
    np.testing.assert_array_equal(adjacency(p, 0.4), [[0, 1], [0, 0]])
    np.testing.assert_allclose(reweight(adjacency(p, 0.4), 0.2), [[0.8, 0.2], [0, 1]])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.floats(0, 1), st.floats(0, 0.99))
def test_rows_sum_to_one_and_the_diagonal_keeps_its_share(seed, tau, omega):
    labels, known = random_faces(seed, 40, 6)
    c = adjacency(conditional(counted(labels, known)), tau)
    g = reweight(c, omega)
    np.testing.assert_allclose(g.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(np.diag(g), np.where(c.sum(1) > 0, 1 - omega, 1))
    assert (np.diag(c) == 0).all() and (g >= 0).all()


@pytest.mark.parametrize("kind", ["cooccurrence", "lift", "shuffled"])
def test_build_graph(kind):
    labels, known = random_faces(4, 400, 10)
    counts = counted(labels, known)
    config = KnowledgeConfig(graph=kind)
    g = build_graph(counts, config, seed=3)
    assert g.dtype == np.float32 and g.shape == (10, 10)
    np.testing.assert_allclose(g.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(g, build_graph(counts, config, seed=3))


def test_shuffle_keeps_degrees_and_changes_edges():
    rng = np.random.default_rng(0)
    c = (rng.random((20, 20)) < 0.2).astype(float)
    np.fill_diagonal(c, 0)
    s = shuffled_adjacency(c, 1)
    np.testing.assert_array_equal(s.sum(0), c.sum(0))
    np.testing.assert_array_equal(s.sum(1), c.sum(1))
    assert (np.diag(s) == 0).all() and set(np.unique(s)) <= {0, 1}
    assert (s != c).sum() > c.sum()  # most edges moved
    assert (shuffled_adjacency(c, 2) != s).any()


def test_lift_prefers_what_is_informative_over_what_is_common():
    rng = np.random.default_rng(0)
    # Label 0 is true of nine in ten, at random; 1 and 2 go together.
    common, one = rng.random(5000) < 0.9, rng.random(5000) < 0.2
    two = np.where(rng.random(5000) < 0.8, one, rng.random(5000) < 0.2)
    labels = np.stack([common, one, two], 1).astype(np.float32)
    counts = counted(labels, np.ones_like(labels, bool))
    paper = build_adjacency(counts, KnowledgeConfig())
    lift = build_adjacency(counts, KnowledgeConfig(graph="lift"))
    assert paper[1, 0] == paper[2, 0] == 1
    assert lift[1, 2] == lift[2, 1] == 1 and lift.sum() <= paper.sum()
    np.testing.assert_allclose(correlation.lift(counts)[1, 0], 1, atol=0.05)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        update(empty(3), np.zeros((2, 4)), np.ones((2, 4), bool))


@pytest.mark.real_data
def test_celeba_training_split_has_302_edges():
    if not CELEBA.exists():
        pytest.skip("the CelebA annotation files are not beside the checkout (../shared/data/celeba)")
    rows = (CELEBA / "list_attr_celeba.txt").read_text().splitlines()[2:]
    split = [line.split()[1] for line in (CELEBA / "list_eval_partition.txt").read_text().splitlines()]
    labels = np.array([row.split()[1:] for row, part in zip(rows, split, strict=True) if part == "0"]) == "1"
    assert labels.shape == (162770, 40)
    counts = counted(labels, np.ones_like(labels, bool))
    c = adjacency(conditional(counts), 0.4)
    assert c.sum() == 302
    # 82 % of them lead to nine common labels; 55 join labels that go together less than by chance, 33 clearly so.
    incoming = np.sort(c.sum(0))[::-1]
    assert round(100 * incoming[:9].sum() / 302) == 82
    lift = correlation.lift(counts)[c > 0]
    assert (lift < 1).sum() == 55 and (lift < 0.95).sum() == 33
