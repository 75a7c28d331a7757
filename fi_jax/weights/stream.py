"""Safetensors files onto devices, slice by slice: never a whole checkpoint, and never a leaf twice, in memory."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from fi_jax.errors import UserError
from fi_jax.files import file_sha256, sha256
from fi_jax.parallel.rules import path_name
from fi_jax.weights.json_fields import Fields, read_object
from fi_jax.weights.leaf import Leaf

# (path, shape) of a leaf of ours -> where it goes.
Placement = Callable[[str, tuple[int, ...]], Sharding]
# (path, layer, that layer as it was read) -> what is kept of it: an array, or a tree of several (a kernel in 8 bits).
Store = Callable[[str, int, jax.Array], Any]
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Tensor:
    """Where one tensor of a checkpoint is; nothing of it is read yet."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def find_files(folder: Path) -> list[Path]:
    """Lists the safetensors files of a checkpoint folder, shards in order.

    Raises:
      UserError: none there, a shard of the index is missing, or only a PyTorch pickle is there.
    """
    index = folder / INDEX
    if index.is_file():
        named = Fields(read_object(index), str(index)).group("weight_map").values
        if not named or not all(isinstance(name, str) and Path(name).name == name for name in named.values()):
            raise UserError(f"{index} is not a valid index; download it again")
        names = sorted(set(named.values()))
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise UserError(f"{folder} lacks {', '.join(absent)}, named by {index.name}; download it again")
        return [folder / name for name in names]
    files = [folder / WHOLE] if (folder / WHOLE).is_file() else sorted(folder.glob("*.safetensors"))
    if files:
        return files
    if not list(folder.glob("*.bin")) and folder.parent.name == "snapshots":
        # The Hub's cache, into which nothing but safetensors was fetched.
        name = folder.parents[1].name.removeprefix("models--").replace("--", "/")
        raise UserError(
            f"'{name}' has no .safetensors file on the Hugging Face Hub; save it again with transformers, "
            f"AutoModel.from_pretrained('{name}').save_pretrained(folder), and name that folder"
        )
    if list(folder.glob("*.bin")) or list(folder.glob("*.pth")) or list(folder.glob("*.pt")):
        raise UserError(
            f"{folder} holds PyTorch pickles only; convert them with transformers: "
            "AutoModel.from_pretrained(folder).save_pretrained(new_folder, safe_serialization=True)"
        )
    raise UserError(f"{folder} holds no .safetensors file")


def read_headers(files: Iterable[Path]) -> dict[str, Tensor]:
    """Reads names, shapes and types of all tensors. A damaged or truncated file is a `UserError` that names it."""
    tensors: dict[str, Tensor] = {}
    odd = []
    for file in files:
        with _open(file) as opened:
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                entry = opened.get_slice(key)
                tensors[key] = Tensor(file, tuple(entry.get_shape()), entry.get_dtype())
                if entry.get_dtype() not in FLOATS and not entry.get_dtype().startswith("I64"):
                    odd.append(f"{key} ({entry.get_dtype()})")
    if odd:
        raise UserError(
            f"{next(iter(files)).parent} is quantised: {', '.join(odd[:5])}{' …' if len(odd) > 5 else ''}; use the unquantised checkpoint or its GGUF"
        )
    return tensors


def _open(file: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or truncated ({error}); download it again") from None


def checkpoint_hash(files: Iterable[Path]) -> str:
    """Names the contents of a checkpoint: the SHA-256 of its one file, or of its shards' digests in order."""
    digests = [file_hash(file) for file in files]
    return digests[0] if len(digests) == 1 else sha256("".join(digests))


def file_hash(file: Path) -> str:
    """Returns the SHA-256 (hex) of a file."""
    # The Hub's cache keeps large files under their SHA-256, so the name answers without reading gigabytes.
    name = file.resolve().name
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name):
        return name
    return file_sha256(file)


def read_leaves(
    leaves: Iterable[Leaf],
    keys: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    dtype: Callable[[str], jnp.dtype],
    placement: Placement | None,
    store: Store | None = None,
) -> dict[str, Any]:
    """Reads, transposes, casts and places every leaf of a checkpoint that fits (`keys`: see `matching.Match`).

    Host memory beyond what the devices hold stays near one source tensor: a stacked leaf is filled layer by layer
    in place, and every process reads only the slices that its own devices hold. The devices never hold more of a stacked
    leaf than what `store` makes of its layers, and one layer as it was read.

    Returns:
      Flat `{path: array}`, or what `store` made of it.
    """
    placed = {}
    default = SingleDeviceSharding(jax.local_devices()[0])
    for leaf in leaves:
        sharding = placement(leaf.path, leaf.shape) if placement else default
        type_ = dtype(leaf.path)
        parts = (
            _convert(_read(tensors[keys[source]], keys[source], leaf, sharding), leaf, type_) for source in leaf.sources
        )
        if leaf.layers:
            value = None
            for i, part in enumerate(parts):
                kept = store(leaf.path, i, part) if store else part
                if value is None:
                    value = _empty_stack(leaf, kept, placement, sharding)
                # Waiting bounds memory: without it the next layers would be read ahead of the device.
                value = jax.block_until_ready(jax.tree.map(partial(_write_layer, layer=i), value, kept))
        else:
            value = jax.block_until_ready(jax.device_put(next(parts), sharding))
        placed[leaf.path] = value
    return placed


def _empty_stack(leaf: Leaf, layer: Any, placement: Placement | None, whole: Sharding) -> Any:
    """Zeros for all layers of what one layer is kept as, each array where its own path says."""

    def empty(path, x) -> jax.Array:
        shape = (leaf.layers, *x.shape)
        name = "/".join(filter(None, (leaf.path, path_name(path))))
        return jnp.zeros(shape, x.dtype, device=placement(name, shape) if placement else whole)

    return jax.tree_util.tree_map_with_path(empty, layer)


def _read(tensor: Tensor, key: str, leaf: Leaf, sharding: Sharding) -> jax.Array:
    """Places a leaf's part of one source tensor as it is stored, cut the way the leaf is cut."""
    cache: dict[str, np.ndarray] = {}

    def read(index) -> np.ndarray:
        name = str(index)
        # Replicas ask for the same slice once a device.
        if name not in cache:
            if leaf.part is not None:
                rows = range(*leaf.own_rows.indices(leaf.part[1]))[index[0]]
                index = (slice(rows.start, rows.stop), *index[1:])
            # Opened for one read: a mapping that stays open counts every page it touched as ours.
            with _open(tensor.file) as opened:
                cache[name] = np.asarray(opened.get_slice(key)[index]) if index else opened.get_tensor(key)
        return cache[name]

    return jax.make_array_from_callback(leaf.own_shape, _source_sharding(leaf, sharding), read)


def _source_sharding(leaf: Leaf, sharding: Sharding) -> Sharding:
    if not isinstance(sharding, NamedSharding):
        return sharding
    entries = list(sharding.spec) + [None] * (len(leaf.shape) - len(sharding.spec))
    entries = entries[1:] if leaf.layers else entries
    if leaf.order is not None:
        entries[-1] = None  # The source may have another number of classes.
    laid_out = (entries[leaf.axes.index(i)] for i in range(len(entries)))
    return NamedSharding(sharding.mesh, PartitionSpec(*[None] * leaf.leading, *laid_out))


def _convert(x: jax.Array, leaf: Leaf, dtype: jnp.dtype) -> jax.Array:
    return _lay_out(x, x.shape[leaf.leading :][: len(leaf.axes)], leaf.axes, leaf.order, dtype)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _lay_out(x: jax.Array, shape, axes: tuple[int, ...], order: tuple[int, ...] | None, dtype: jnp.dtype) -> jax.Array:
    # Cast before transposing: fused into one loop the two are several times slower on CPUs.
    x = jax.lax.optimization_barrier(x.reshape(shape).astype(dtype)).transpose(axes)
    return x if order is None else x[..., np.array(order)]


def _write_layer(buffer: jax.Array, part: jax.Array, layer: int) -> jax.Array:
    return _written(buffer, part, layer, buffer.sharding)


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def _written(buffer: jax.Array, part: jax.Array, layer: int, sharding: Sharding) -> jax.Array:
    # As integers: XLA's CPU backend would run every 16-bit float of the whole buffer through float32 and back.
    integer = jnp.dtype(f"uint{8 * buffer.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(buffer, integer)
    bits = jax.lax.dynamic_update_index_in_dim(bits, jax.lax.bitcast_convert_type(part, integer), layer, 0)
    return jax.lax.with_sharding_constraint(jax.lax.bitcast_convert_type(bits, buffer.dtype), sharding)
