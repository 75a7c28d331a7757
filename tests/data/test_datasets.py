"""One record describes a data set; the released ones are found by name."""

import subprocess
import sys

import pytest

from fi_jax.data.datasets import DATASET_NAMES, dataset_title, find_dataset
from fi_jax.errors import UserError


def test_protocol_questions():
    assert len(find_dataset("celeba").questions) == 40 and len(find_dataset("maad_face").questions) == 47
    asked = [q.name for q in find_dataset("utkface").questions]
    assert asked == ["gender", "race:utkface", "age_group", "age_years"]
    assert [q.name for q in find_dataset("raf_db").questions] == ["expression", "gender", "race:raf_db"]
    assert len(find_dataset("synthetic_faces").questions) == 40 + 5


@pytest.mark.parametrize("name", DATASET_NAMES)
def test_records(name):
    dataset = find_dataset(name)
    assert dataset.name == name and dataset.title == dataset_title(name)
    assert all(label in dataset.vocabulary for q in dataset.questions for label in q.labels if label)
    assert name in dataset.same_pictures
    for other in dataset.same_pictures_as:
        assert find_dataset(other).same_pictures == dataset.same_pictures


def test_unknown_data_sets():
    assert dataset_title("somebody's") == "somebody's"
    with pytest.raises(UserError, match="did you mean 'utkface'"):
        find_dataset("utkfacee")


def test_records_are_light():
    """A record is found without JAX and without the libraries that decode."""
    code = "import sys, fi_jax.data.datasets as d; d.find_dataset('celeba'); print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
