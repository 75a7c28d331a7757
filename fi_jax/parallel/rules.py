"""The one sharding table: parameter paths → logical axes → mesh axes, for parameters, batches and activations."""

import contextlib
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fi_jax.config import ModelConfig
from fi_jax.parallel.mesh import BATCH_AXES, batch_shards

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogicalAxis:
    """Where one logical axis goes on the mesh: in parameters (and their optimiser state), and in activations."""

    name: str
    parameter: str | None
    activation: str | tuple[str, ...] | None


# Logical axis → mesh axis. `embed` is the width of the residual stream: cut over `fsdp` at rest, whole in
# activations, because there the batch already occupies `fsdp`.
LOGICAL_AXES = (
    LogicalAxis("layers", None, None),
    LogicalAxis("batch", None, BATCH_AXES),
    LogicalAxis("seq", None, None),
    LogicalAxis("embed", "fsdp", None),
    LogicalAxis("heads", "tensor", "tensor"),
    LogicalAxis("kv_heads", "tensor", "tensor"),
    LogicalAxis("mlp", "tensor", "tensor"),
    LogicalAxis("vocab", "tensor", "tensor"),
    LogicalAxis("rank", "fsdp", None),
    LogicalAxis("norm", None, None),
)

_ENC = r"(image|segmentation)_encoder"
_ANY = r".*/layers"

# Parameter path (full match) → logical axes. Stacked layers come first. The first match wins.
PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Vision encoders, outside the layer stack.
    (rf"{_ENC}/patch_embed/kernel", (None, None, None, "embed")),
    (rf"{_ENC}/(position_embedding|registers)", (None, "embed")),
    (rf"{_ENC}/(class_embedding|patch_embed/bias|layers/layer_scale[12])", ("norm",)),
    (r".*norm\w*/(scale|bias)", ("norm",)),
    # Attention: column-parallel in, row-parallel out.
    (rf"{_ANY}/attn/q_proj/kernel", ("layers", "embed", "heads")),
    (rf"{_ANY}/attn/[kv]_proj/kernel", ("layers", "embed", "kv_heads")),
    (rf"{_ANY}/attn/(o|out)_proj/kernel", ("layers", "heads", "embed")),
    (rf"{_ANY}/attn/q_proj/bias", ("layers", "heads")),
    (rf"{_ANY}/attn/[kv]_proj/bias", ("layers", "kv_heads")),
    (rf"{_ANY}/attn/(o|out)_proj/bias", ("layers", "norm")),
    (rf"{_ANY}/attn/[qkv]_proj/lora_a", ("layers", "embed", "rank")),
    (rf"{_ANY}/attn/q_proj/lora_b", ("layers", "rank", "heads")),
    (rf"{_ANY}/attn/[kv]_proj/lora_b", ("layers", "rank", "kv_heads")),
    (rf"{_ANY}/attn/(o|out)_proj/lora_a", ("layers", "heads", "rank")),
    (rf"{_ANY}/attn/(o|out)_proj/lora_b", ("layers", "rank", "embed")),
    # Feed-forward: the same, over the inner width.
    (rf"{_ANY}/mlp/(gate_proj|up_proj|fc1)/kernel", ("layers", "embed", "mlp")),
    (rf"{_ANY}/mlp/(down_proj|fc2)/kernel", ("layers", "mlp", "embed")),
    (rf"{_ANY}/mlp/(gate_proj|up_proj|fc1)/bias", ("layers", "mlp")),
    (rf"{_ANY}/mlp/(down_proj|fc2)/bias", ("layers", "norm")),
    (rf"{_ANY}/mlp/(gate_proj|up_proj|fc1)/lora_a", ("layers", "embed", "rank")),
    (rf"{_ANY}/mlp/(gate_proj|up_proj|fc1)/lora_b", ("layers", "rank", "mlp")),
    (rf"{_ANY}/mlp/(down_proj|fc2)/lora_a", ("layers", "mlp", "rank")),
    (rf"{_ANY}/mlp/(down_proj|fc2)/lora_b", ("layers", "rank", "embed")),
    # Token embedding and head.
    (r".*embed/embedding", ("vocab", "embed")),
    (r".*lm_head/kernel", ("embed", "vocab")),
    # The decoder of masked pre-training: small, and gone afterwards.
    (r"decoder/.*kernel", ("embed", None)),
    (r"decoder/.*(bias|mask_token)", ("norm",)),
    # Connectors: two layers, column then row.
    (r"\w+_connector/fc1/kernel", ("embed", "mlp")),
    (r"\w+_connector/fc1/bias", ("mlp",)),
    (r"\w+_connector/fc2/kernel", ("mlp", "embed")),
    (r"\w+_connector/(fc2/bias|newline)", ("norm",)),
    # Knowledge module and alignment head: a few small matrices.
    (r"knowledge/\w+/kernel", (None, "embed")),
    (r"knowledge/\w+/bias", ("norm",)),
    (r"head/(.*/)?kernel", ("embed", None)),
    (r"head/(.*/)?(bias|log_scale|scale|strength)", ("norm",)),
)


@dataclass(frozen=True)
class Placement:
    """Where one leaf goes, and along which of its dimensions a wanted cut was given up."""

    path: str
    shape: tuple[int, ...]
    logical: tuple[str | None, ...]
    spec: PartitionSpec
    # One line for each dimension that should be cut but does not divide.
    replicated: tuple[str, ...] = ()


def path_name(path: Iterable[Any]) -> str:
    """Returns a jax key path as `a/b/c`, the form every pattern in configs and tables matches."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """Returns the logical axes of the parameter at `path`, one a dimension.

    Raises `KeyError` when no row of `PARAMETER_AXES` matches: a new parameter needs a decision, not a default.
    """
    kernel, _, field = path.rpartition("/")
    if kernel.endswith("/kernel"):
        # A kernel in 8 bits (`models.precision.Quantised`): transposed, as it was, and a scale an output.
        axes = logical_axes(kernel, ndim + (field == "scale"))
        *stack, inputs, outputs = axes
        return {"forward": (*stack, outputs, inputs), "backward": axes, "scale": (*stack, outputs)}[field]
    for pattern, axes in PARAMETER_AXES:
        if re.fullmatch(pattern, path):
            if ndim == 0:
                return ()
            if ndim < len(axes):
                raise KeyError(f"parameter '{path}' has {ndim} dimensions; parallel.rules.PARAMETER_AXES says {axes}")
            # A norm inside the layer stack has the stack axis in front of the row's axes.
            return ("layers",) * (ndim - len(axes)) + axes
    raise KeyError(f"parameter '{path}' matches no row of parallel.rules.PARAMETER_AXES; add one")


def place_parameter(path: str, shape: tuple[int, ...], mesh: Mesh | Mapping[str, int]) -> Placement:
    """Decides the cut of one parameter of `shape` on a mesh (or on bare axis sizes)."""
    sizes = mesh.shape if isinstance(mesh, Mesh) else mesh
    to_mesh = {axis.name: axis.parameter for axis in LOGICAL_AXES}
    logical = logical_axes(path, len(shape))
    entries: list[str | None] = []
    notes = []
    for dim, (name, size) in enumerate(zip(logical, shape)):
        axis = to_mesh[name] if name is not None else None
        if axis in entries:
            # One mesh axis cuts one dimension: of an adapter, whichever of width and rank comes first.
            axis = None
        if axis is not None and size % sizes[axis]:
            notes.append(f"{path}{list(shape)} dim {dim} ({name}) does not divide by {axis}={sizes[axis]}")
            axis = None
        entries.append(axis if axis is not None and sizes[axis] > 1 else None)
    while entries and entries[-1] is None:
        entries.pop()
    return Placement(path, tuple(shape), logical, PartitionSpec(*entries), tuple(notes))


def placements(params: Any, mesh: Mesh | Mapping[str, int]) -> list[Placement]:
    """Lists the placement of every leaf of a parameter tree (arrays or shapes)."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return [place_parameter(path_name(path), leaf.shape, mesh) for path, leaf in leaves]


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """Returns a tree like `params` (arrays or `ShapeDtypeStruct`s) of `NamedSharding`s.

    A dimension that does not divide by its mesh axis is replicated along that axis, and one warning lists them all.
    Absent subtrees (`None`) stay absent. Raises `KeyError` for a path the table does not know.
    """
    placed = placements(params, mesh)
    notes = [note for leaf in placed for note in leaf.replicated]
    if notes:
        logger.warning("replicated instead of cut:\n  %s", "\n  ".join(notes))
    treedef = jax.tree_util.tree_structure(params)
    return jax.tree_util.tree_unflatten(treedef, [NamedSharding(mesh, leaf.spec) for leaf in placed])


def gather_small(params: Any) -> Any:
    """Gathers, within a jitted step, what is cut over `fsdp` and stands in no stack of layers.

    A layer's kernels are gathered when it runs. Of embeddings, heads and connectors XLA would rather gather the faces of
    all devices, compute some columns on each and send these to where their faces are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return params
    whole = {**mesh.shape, "fsdp": 1}

    def one(path, leaf):
        name = path_name(path)
        if "/layers/" in name:
            return leaf
        return jax.lax.with_sharding_constraint(leaf, place_parameter(name, leaf.shape, whole).spec)

    return jax.tree_util.tree_map_with_path(one, params)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Like `param_shardings` for a state that holds parameters deeper down (optimiser moments, averages).

    A leaf whose path ends in a known parameter path is cut as that parameter; any other (step, counts, keys) is
    replicated.
    """

    def one(path, leaf):
        keys = path_name(path).split("/")
        for start in range(len(keys)):
            with contextlib.suppress(KeyError):
                return NamedSharding(mesh, place_parameter("/".join(keys[start:]), leaf.shape, mesh).spec)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, state)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 (faces) cut over `data` and `fsdp`; every array of a batch has the faces first."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place(tree: Any, shardings: Any) -> Any:
    """Puts a tree that every process holds whole (parameters read from disk, constants) onto the mesh.

    `shardings` is a tree of the same structure or one sharding for all leaves. Each process uploads only the pieces
    its own devices hold, so it works on many hosts without communication.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree_util.tree_map(lambda _: shardings, tree)
    return jax.tree_util.tree_map(_put, tree, shardings)


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    spread = isinstance(array, jax.Array) and not array.is_fully_addressable
    if sharding.is_fully_addressable or spread:
        # What already spans the hosts is cut anew between them; every process must be here.
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def fetch(tree: Any) -> Any:
    """Returns every leaf whole, as numpy, on every process; the inverse of `place`. Every process must call it."""

    def whole(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            from jax.experimental import multihost_utils

            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree_util.tree_map(whole, tree)


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Turns each process's own share of a batch (faces first, the rows of `local_rows`) into arrays over the whole mesh."""
    sharding, shards = batch_sharding(mesh), batch_shards(mesh)
    mine = _held_shards(mesh, jax.process_index())

    def placed(share: Any) -> jax.Array:
        share = np.asarray(share)
        size = len(share) // len(mine)

        def piece(index: Any) -> np.ndarray:
            place = mine.index((index[0].start or 0) // size)
            return share[place * size : (place + 1) * size]

        return jax.make_array_from_callback((size * shards, *share.shape[1:]), sharding, piece)

    return {key: placed(share) for key, share in batch.items()}


def local_rows(mesh: Mesh, batch_size: int, process_index: int | None = None) -> slice:
    """Rows of a global batch, as it comes from the data, that one process (default: this one) feeds.

    Processes that hold the same shards (`tensor` across hosts) feed the same rows. A process's shards need not lie
    side by side: on a TPU, axes follow the wires, not the hosts. The faces of a batch may then be in another order on
    the mesh. Raises `ValueError` when two processes share some of their shards and not all.
    """
    process = jax.process_index() if process_index is None else process_index
    shards = batch_shards(mesh)
    shares = sorted({_held_shards(mesh, device.process_index) for device in mesh.devices.flat})
    if sum(map(len, shares)) != shards:
        raise ValueError(f"processes hold shards {shares} of {shards}: some are shared and some are not")
    mine = shares.index(_held_shards(mesh, process))
    first, count = sum(map(len, shares[:mine])), len(shares[mine])
    size = batch_size // shards
    return slice(first * size, (first + count) * size)


def _held_shards(mesh: Mesh, process: int) -> tuple[int, ...]:
    """Which shards of the batch the devices of a process hold."""
    grid = mesh.devices.reshape(batch_shards(mesh), -1)
    return tuple(i for i, row in enumerate(grid) if any(device.process_index == process for device in row))


def activation_rules(
    mesh: Mesh | Mapping[str, int], model: ModelConfig | None = None
) -> tuple[tuple[str, str | tuple[str, ...] | None], ...]:
    """Returns the rules for `flax.linen.with_logical_constraint` inside the step.

    With `model`, an axis whose size some module cannot cut evenly (9 heads over tensor=8) is left whole.
    """
    sizes = mesh.shape if isinstance(mesh, Mesh) else mesh
    counts = _activation_counts(model) if model is not None else {}
    rules = []
    for axis in LOGICAL_AXES:
        target = axis.activation
        if isinstance(target, str) and any(count % sizes[target] for count in counts.get(axis.name, ())):
            target = None
        rules.append((axis.name, target))
    return tuple(rules)


def _activation_counts(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    vits = (model.image_encoder, model.segmentation_encoder)
    return {
        # Keys and values are constrained by the same name as queries: both counts must divide.
        "heads": (model.llm.num_heads, model.llm.num_kv_heads, *(vit.num_heads for vit in vits)),
        "kv_heads": (model.llm.num_kv_heads, *(vit.num_heads for vit in vits)),
        "mlp": (model.llm.intermediate_size, *(vit.intermediate_size for vit in vits)),
        "vocab": (model.llm.vocab_size,),
    }


@contextlib.contextmanager
def activation_scope(mesh: Mesh, model: ModelConfig | None = None) -> Iterator[None]:
    """Within it, `nn.with_logical_constraint` in the models takes effect on `mesh`; outside, it does nothing.

    Trace (call or lower) the jitted step inside this scope.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(activation_rules(mesh, model)):
        yield


def bytes_per_device(params: Any, mesh: Mesh | Mapping[str, int]) -> int:
    """Bytes that each device holds of a parameter tree (arrays or shapes) under the table."""
    sizes = mesh.shape if isinstance(mesh, Mesh) else mesh
    total = 0
    for placed, leaf in zip(placements(params, mesh), jax.tree_util.tree_leaves(params)):
        cut = math.prod(sizes[axis] for axis in placed.spec if axis is not None)
        total += math.prod(placed.shape) * np.dtype(leaf.dtype).itemsize // cut
    return total
