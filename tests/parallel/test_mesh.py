"""Mesh shapes and batch division: what fits, what does not, and what the refusal says."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from fi_jax.config import MeshConfig
from fi_jax.errors import UserError
from fi_jax.parallel.mesh import AXES, check_batch, make_mesh, mesh_shape
from fi_jax.parallel.rules import local_rows


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
    with pytest.raises(UserError, match="a batch of 2 faces .* or train.accumulate to 4"):
        check_batch(16, 8, mesh)
    with pytest.raises(UserError, match="3 hosts"):
        check_batch(16, 1, mesh, num_hosts=3)


def mesh_of(processes: list, shape: tuple[int, int, int]) -> Any:
    """A mesh as far as rows are concerned: the process of each device."""
    devices = np.asarray([SimpleNamespace(process_index=process) for process in processes]).reshape(shape)
    return SimpleNamespace(devices=devices, shape=dict(zip(AXES, shape)))


@pytest.mark.parametrize(
    ("processes", "shape", "rows"),
    [
        # Hosts one after the other.
        ([0, 0, 1, 1], (4, 1, 1), {0: (0, 4), 1: (4, 8)}),
        # The ring of a 4x4 TPU slice with hosts of 2x2 chips, as `make_mesh` lays it out there.
        ([0, 0, 1, 1, 3, 3, 0, 2, 2, 2, 2, 3, 3, 1, 1, 0], (1, 16, 1), {0: (0, 4), 1: (4, 8), 3: (8, 12), 2: (12, 16)}),
        # `tensor` inside hosts, and across them.
        ([0, 0, 1, 1, 0, 0, 1, 1], (2, 2, 2), {0: (0, 8), 1: (8, 16)}),
        ([0, 1, 0, 1], (1, 2, 2), {0: (0, 4), 1: (0, 4)}),
    ],
)
def test_processes_feed_every_row_once(processes, shape, rows):
    mesh = mesh_of(processes, shape)
    size = {4: 8, 16: 16, 8: 16}[len(processes)] if shape != (1, 2, 2) else 4
    for process, (start, stop) in rows.items():
        assert local_rows(mesh, size, process) == slice(start, stop)


def test_hosts_that_share_some_rows_are_refused():
    with pytest.raises(ValueError, match="some are shared"):
        local_rows(mesh_of([0, 0, 0, 1, 1, 1], (3, 1, 2)), 6, 0)
