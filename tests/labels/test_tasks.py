"""Age arithmetic: groups, two-hot bins, estimators."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fi_jax.errors import UserError
from fi_jax.labels.tasks import (
    AGE_GROUP,
    AGE_YEARS,
    EXPRESSION,
    YEAR_CENTRES,
    age_group_of,
    age_labels,
    expected_age,
    median_age,
    one_of,
)


@pytest.mark.parametrize(
    ("age", "group"),
    [
        (0, "0-2"),
        (2, "0-2"),
        (2.9, "0-2"),
        (3, "3-9"),
        (9, "3-9"),
        (10, "10-19"),
        (69, "60-69"),
        (70, "70+"),
        (116, "70+"),
    ],
)
def test_group_boundaries(age, group):
    assert age_group_of(age) == f"age:{group}"


@given(st.floats(0, 120))
def test_age_targets(age):
    targets = age_labels(age)
    assert set(targets) == set(AGE_GROUP.labels) | set(AGE_YEARS.labels)
    assert sum(targets[name] for name in AGE_GROUP.labels) == 1
    bins = np.array([targets[name] for name in AGE_YEARS.labels])
    assert (bins > 0).sum() <= 2 and np.isclose(bins.sum(), 1)
    assert np.isclose(expected_age(bins), np.clip(age, 2, 97), atol=1e-9)


def test_bin_names_hold_their_centres():
    for name, centre in zip(AGE_YEARS.labels, YEAR_CENTRES, strict=True):
        low = name.removeprefix("years:").rstrip("+").split("-")[0]
        assert int(low) + 2 == centre
        assert age_labels(centre)[name] == 1


def test_estimators():
    sure = np.eye(20)
    np.testing.assert_allclose(expected_age(sure), YEAR_CENTRES)
    np.testing.assert_allclose(median_age(sure), YEAR_CENTRES)
    even = np.zeros(20)
    even[[3, 10, 19]] = 0.3, 0.3, 0.4
    assert np.isclose(median_age(even), 50 - 0.5 + 5 * 0.2 / 0.3)
    # Probabilities that are not normalised (yes/no heads) are.
    assert np.isclose(expected_age(even * 0.1), expected_age(even))


@pytest.mark.parametrize("age", [-1, float("nan"), float("inf")])
def test_impossible_ages(age):
    with pytest.raises(UserError, match="not a number of years"):
        age_labels(age)


def test_one_of():
    stated = one_of(EXPRESSION, "expression:sad")
    assert [name for name, value in stated.items() if value] == ["expression:sad"] and len(stated) == 7
    with pytest.raises(UserError):
        one_of(EXPRESSION, "expression:bored")
