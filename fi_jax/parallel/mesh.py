"""The device mesh: three named axes laid over the devices, checked before anything is computed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from fi_jax.config import Experiment, MeshConfig
from fi_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
# The batch is cut along both: `fsdp` is data parallelism whose parameters are cut as well.
BATCH_AXES = ("data", "fsdp")


def mesh_shape(config: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """Returns the sizes of (data, fsdp, tensor) for `num_devices` devices, with -1 filled in.

    Raises `UserError` when the product is not the device count.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if num_devices % fixed:
            raise UserError(
                f"mesh {_text(config)} does not fit: {num_devices} devices are not a multiple of {fixed}; "
                f"choose sizes whose product divides {num_devices}"
            )
        sizes[sizes.index(-1)] = num_devices // fixed
    elif fixed != num_devices:
        raise UserError(
            f"mesh {_text(config)} multiplies to {fixed} but there are {num_devices} devices; "
            f"make the product {num_devices} (or set one axis to -1)"
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays `devices` (default: all devices of all processes) out as a mesh of `config`'s shape.

    Axes are `AxisType.Auto`: linen's logical constraints fail under the Explicit default. Raises `UserError` when
    the product of the sizes is not the number of devices (`jax.make_mesh` would silently use the first few).
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(config, len(devices))
    if devices[0].platform == "cpu":
        # No topology to respect; process-major order keeps each process's share of the batch contiguous.
        grid = np.asarray(devices).reshape(shape)
    elif (slices := len({getattr(device, "slice_index", 0) for device in devices})) > 1 and devices[
        0
    ].platform == "tpu":
        # Between slices there is only the data-centre network: `data` crosses it, the other axes never do.
        if shape[0] % slices:
            raise UserError(f"{slices} TPU slices need mesh.data to be a multiple of {slices}; it is {shape[0]}")
        inside = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def run_on(config: Experiment, mesh: Mesh) -> Experiment:
    """The config as it runs on `mesh`: layers that are cut over devices run in a scan, which gathers one at a time.

    On TPUs all do: what unrolling saves was measured on a GPU, and 32 layers compile for minutes.
    """
    whole = mesh.shape["fsdp"] * mesh.shape["tensor"] == 1
    if config.model.scan_layers or (whole and mesh.devices.flat[0].platform != "tpu"):
        return config
    return replace(config, model=replace(config.model, scan_layers=True))


def batch_shards(mesh: Mesh | Mapping[str, int]) -> int:
    """Number of pieces the batch axis is cut into, on a mesh or on bare axis sizes."""
    sizes = mesh if isinstance(mesh, Mapping) else mesh.shape
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def check_batch(batch_size: int, accumulate: int, mesh: Mesh | Mapping[str, int], num_hosts: int = 1) -> None:
    """Raises `UserError` unless a global batch cuts evenly into accumulation steps, devices and hosts.

    `batch_size` counts faces of all hosts and all `accumulate` microbatches together.
    """
    shards = batch_shards(mesh)
    if batch_size % accumulate:
        raise UserError(f"data.batch_size {batch_size} is not a multiple of train.accumulate {accumulate}")
    micro = batch_size // accumulate
    for count, what in ((shards, "data x fsdp devices"), (num_hosts, "hosts")):
        if micro % count:
            near = max(count, round(micro / count) * count) * accumulate
            raise UserError(
                f"a batch of {micro} faces a step does not divide over {count} {what}; "
                f"set data.batch_size to a multiple of {count * accumulate} ({near} is the nearest)"
                + (f", or train.accumulate to {batch_size // count}" if batch_size % count == 0 else "")
            )


def _text(config: MeshConfig) -> str:
    return f"data={config.data},fsdp={config.fsdp},tensor={config.tensor}"
