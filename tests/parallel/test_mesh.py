"""Mesh shapes and batch division: what fits, what does not, and what the refusal says."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from fi_jax.config import MeshConfig
from fi_jax.errors import UserError
from fi_jax.parallel.mesh import check_batch, make_mesh, mesh_shape


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2))
def test_rest_is_filled_in(data, fsdp, tensor, free):
    sizes = [data, fsdp, tensor]
    asked = [-1 if axis == free else size for axis, size in enumerate(sizes)]
    assert mesh_shape(MeshConfig(*asked), data * fsdp * tensor) == tuple(sizes)


@pytest.mark.parametrize("config", [MeshConfig(4, 1, 1), MeshConfig(2, 2, 4), MeshConfig(-1, 3, 1)])
def test_wrong_product_is_one_line(config):
    with pytest.raises(UserError, match="8 devices") as error:
        mesh_shape(config, 8)
    assert "\n" not in str(error.value)


def test_axes_are_auto():
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_batch_must_divide():
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    check_batch(16, 2, mesh)
    check_batch(16, 4, mesh)
    with pytest.raises(UserError, match="set data.batch_size to a multiple of 4"):
        check_batch(6, 1, mesh)
    with pytest.raises(UserError, match="a batch of 2 faces"):
        check_batch(16, 8, mesh)
    with pytest.raises(UserError, match="3 hosts"):
        check_batch(16, 1, mesh, num_hosts=3)
