"""Bridges between data sets: declared with a source, and counted where no set annotates both labels, nowhere else."""

import numpy as np
import pytest

from fi_jax.errors import UserError
from fi_jax.knowledge import correlation
from fi_jax.labels.bridges import BRIDGES, Bridge, bridges_for
from fi_jax.labels.registry import vocabulary

ALL = vocabulary("all")


def test_every_bridge_has_a_source_and_joins_labels_of_the_vocabulary():
    for bridge in BRIDGES:
        assert bridge.source and bridge.given in ALL and bridge.label in ALL and bridge.given != bridge.label
    # Rules between sets are bridges: nearly certain one way or the other.
    chances = {(one.given, one.label): one.chance for one in bridges_for(vocabulary("faces"))}
    assert chances["age:0-2", "Young"] == 0.99 and chances["age:0-2", "Goatee"] == pytest.approx(0.01)
    assert chances["expression:happy", "Smiling"] == 0.95
    with pytest.raises(UserError, match="chance 1.5"):
        Bridge("a", "b", 1.5, "test")


def test_a_bridge_counts_only_where_nothing_was_counted():
    faces = vocabulary("faces")
    n = len(faces)
    happy, smiling, young = (faces.index(name) for name in ("expression:happy", "Smiling", "Young"))
    rng = np.random.default_rng(0)
    labels, known = rng.random((4000, n)) < 0.3, np.zeros((4000, n), bool)
    known[:2000, [smiling, young]], known[2000:, happy] = True, True
    counts = correlation.update(correlation.empty(n), labels, known)
    bridged = correlation.with_bridges(counts, faces)
    # As frequent as each set has it; smiling is commoner than happy × 0.95 allows, so both stand as declared.
    p = correlation.conditional(bridged)
    assert p[happy, smiling] == pytest.approx(0.95, abs=1e-3)
    often = correlation.prior(counts)
    assert p[smiling, happy] == pytest.approx(0.95 * often[happy] / often[smiling], abs=1e-3)
    assert correlation.log_lift(bridged)[happy, smiling] == pytest.approx(np.log(0.95 / often[smiling]), abs=0.01)
    # What was counted is as it was, and a label that no set annotates has no bridge.
    assert bridged.k[smiling, young] == counts.k[smiling, young] == 2000
    assert not bridged.k[faces.index("age:0-2")].any()
    np.testing.assert_array_equal(correlation.prior(bridged), often)
