"""A name that was read from a file becomes a path inside its folder, or is refused."""

from pathlib import Path

import pytest

from fi_jax.errors import UserError
from fi_jax.files import inside


@pytest.mark.parametrize("name", ["a.jpg", "n000001/0001_01.jpg", "a..b/..c", "..."])
def test_names_inside(name):
    assert inside("folder", name) == Path("folder") / name


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x", "/etc/passwd", "a\\..\\..\\x", "a\0b", None, 7])
def test_names_that_lead_out(name):
    with pytest.raises(UserError, match="lead out of 'folder'"):
        inside("folder", name)
