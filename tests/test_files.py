import os

import pytest

from fi_jax.errors import UserError
from fi_jax.files import refuse_overwrite


def test_inputs_and_files_of_others_are_not_overwritten(tmp_path):
    photo, link, map_, new = (tmp_path / name for name in ("photo.png", "link.png", "map.png", "new.png"))
    photo.write_bytes(b"pixels")
    map_.write_bytes(b"made by fi-jax")
    link.symlink_to(photo)
    os.link(photo, tmp_path / "hard.png")
    refuse_overwrite([new, map_], [photo, tmp_path / "missing"], b"fi-jax")
    for output in (photo, link, tmp_path / "hard.png"):
        with pytest.raises(UserError, match="is read and would be overwritten"):
            refuse_overwrite([new, output], [photo])
    with pytest.raises(UserError, match="was not written by this command"):
        refuse_overwrite([photo], mark=b"fi-jax")
    with pytest.raises(UserError, match="is a folder"):
        refuse_overwrite([tmp_path])
