"""Metrics against plain definitions, the bootstrap against theory, calibration against known cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.evaluation import calibration, metrics

pairs = st.integers(2, 5).flatmap(
    lambda k: st.tuples(
        st.just(k),
        st.lists(st.tuples(st.integers(-1, k - 1), st.integers(-1, k - 1)), min_size=1, max_size=40),
    )
)


def confusion(target, answer, k):
    return metrics.as_confusion(metrics.confusion_cells(np.asarray(target), np.asarray(answer), k).sum(0))


@given(pairs)
def test_confusion_metrics_equal_their_definitions(case):
    k, rows = case
    target, answer = np.array(rows).T
    c = confusion(target, answer, k)
    known = [(t, a) for t, a in rows if t >= 0]
    assert c.shape == (k, k + 1) and c.sum() == len(known)
    if not known:
        assert np.isnan(metrics.accuracy(c)) and np.isnan(metrics.macro_f1(c))
        return
    assert metrics.accuracy(c) == pytest.approx(np.mean([t == a for t, a in known]))
    assert metrics.within_one(c) == pytest.approx(np.mean([a >= 0 and abs(t - a) <= 1 for t, a in known]))
    recalls, f1s = [], []
    for i in range(k):
        tp = sum(t == a == i for t, a in known)
        true, said = sum(t == i for t, _ in known), sum(a == i for _, a in known)
        if true:
            recalls.append(tp / true)
        if true + said:
            f1s.append(2 * tp / (true + said))
    assert metrics.balanced_accuracy(c) == pytest.approx(np.mean(recalls))
    assert metrics.macro_f1(c) == pytest.approx(np.mean(f1s))


def test_unreadable_answers_are_wrong_and_unknown_truth_is_not_counted():
    c = confusion([0, 0, 1, -1], [0, -1, 1, 1], 2)
    assert metrics.accuracy(c) == pytest.approx(2 / 3)
    assert metrics.recalls(c).tolist() == [0.5, 1.0]


def test_mean_attribute_leaves_out_attributes_nobody_knows():
    cells = [confusion([0, 1], [0, 0], 2).ravel(), np.zeros(6), confusion([1, 1], [1, 1], 2).ravel()]
    assert metrics.mean_attribute(metrics.accuracy, np.stack(cells)) == pytest.approx((0.5 + 1) / 2)


@given(st.integers(2, 30), st.integers(1, 50), st.integers(0, 9))
@settings(max_examples=20)
def test_bootstrap_resamples_whole_faces(faces, resamples, seed):
    stats = np.random.default_rng(seed).integers(0, 3, (faces, 2))
    stats = np.concatenate([stats, np.ones((faces, 1))], -1)
    sums = metrics.bootstrap_sums(stats, resamples, seed)
    assert sums.shape == (resamples, 3)
    assert (sums[:, 2] == faces).all(), "every resample has as many faces as the sample"
    np.testing.assert_array_equal(sums, metrics.bootstrap_sums(stats, resamples, seed))


def test_bootstrap_interval_of_a_share_agrees_with_theory():
    correct = np.zeros((2000, 2))
    correct[:1400, 0] = 1
    correct[:, 1] = 1
    sums = metrics.bootstrap_sums(correct, 4000, seed=1)
    low, high = metrics.interval(sums[:, 0] / sums[:, 1])
    error = 1.96 * np.sqrt(0.7 * 0.3 / 2000)
    assert low == pytest.approx(0.7 - error, abs=0.003)
    assert high == pytest.approx(0.7 + error, abs=0.003)


def test_interval_ignores_undefined_samples():
    assert metrics.interval(np.array([np.nan, 0.5, 0.5])) == (0.5, 0.5)
    assert np.isnan(metrics.interval(np.array([np.nan]))).all()


def test_majority_class_ignores_unknown():
    assert metrics.majority_class(np.array([-1, -1, -1, 2, 2, 1]), 3) == 2


def test_reliability_of_a_calibrated_and_an_overconfident_model():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 40_000)
    honest = rng.uniform(size=40_000) < confidence
    good = calibration.reliability(confidence, honest)
    assert good.ece < 0.01
    assert good.count.sum() == 40_000
    sure = calibration.reliability(np.full(1000, 1.0), np.arange(1000) < 600)
    assert sure.ece == pytest.approx(0.4)
    assert sure.count[-1] == 1000 and np.isnan(sure.accuracy[0])


@given(st.floats(0.3, 4.0))
@settings(max_examples=10, deadline=None)
def test_temperature_undoes_a_known_one(true_temperature):
    rng = np.random.default_rng(3)
    honest = rng.dirichlet([1, 1, 1, 1], 6000)
    target = np.array([rng.choice(4, p=p) for p in honest])
    distorted = calibration.apply_temperature(honest, 1 / true_temperature)
    target[:50] = -1
    assert calibration.fit_temperature(distorted, target) == pytest.approx(true_temperature, rel=0.07)


def test_temperature_one_changes_nothing_and_never_the_answer():
    probs = np.random.default_rng(0).dirichlet([1, 1, 1], 50)
    np.testing.assert_allclose(calibration.apply_temperature(probs, 1.0), probs, atol=1e-12)
    np.testing.assert_array_equal(calibration.apply_temperature(probs, 3.0).argmax(-1), probs.argmax(-1))
