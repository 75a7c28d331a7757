"""How much memory a training step and its inference need on each device: an analytic model, no compilation.

Ours. Parameters, gradients and optimiser state are exact (the sharding table decides); activations count what the
backward pass keeps under the remat policy, plus the working set of one layer; what the compiler adds is `MARGIN`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fi_jax.config import Experiment, ModelConfig, VitConfig
from fi_jax.parallel.rules import bytes_per_device

# Sizes by axis name.
Mesh = Mapping[str, int]
Change = Callable[[Experiment, Mesh], tuple[Experiment, Mesh]]
GIB = 2**30
# Text of the template around the slots of the prefix.
TEXT_TOKENS = 64
# Fragmentation, buffers of collectives, the runtime itself: a share of the rest. With it, the plan was 5 % above
# the peaks measured for 7b on an H100 (benchmarks/README.md).
MARGIN = 0.05
# What `models.precision` keeps in 8 bits: kernels of the LLM's layers.
_ROUNDED = re.compile(r"llm/layers/.*_proj/kernel")


@dataclass(frozen=True)
class Shapes:
    """Sizes of one micro-batch on one device. `faces` may be a fraction when the batch does not divide."""

    faces: float
    prefix: int
    segments: int
    segment_length: int
    labels: int
    lm_positions: int

    @property
    def tokens(self) -> int:
        """Tokens of one face's sequence."""
        return self.prefix + self.segments * self.segment_length


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per device, by use."""

    frozen: float
    trained: float
    gradients: float
    optimiser: float
    average: float
    gathered: float
    encoders: float
    llm: float
    logits: float
    batch: float

    @property
    def training(self) -> float:
        """Everything at the peak of a training step."""
        parts = sum(getattr(self, name) for name in self.__dataclass_fields__)
        return parts * (1 + MARGIN)


def shapes_of(config: Experiment, mesh: Mesh, num_labels: int, num_questions: int) -> Shapes:
    """Sizes of one device's micro-batch of a config on a mesh."""
    model, data = config.model, config.data
    slots = model.image_slots + num_labels * model.knowledge.tokens
    slots += model.segmentation_encoder.num_tokens if model.use_segmentation else 0
    closed = data.questions_per_face or num_questions
    return Shapes(
        faces=data.batch_size / config.train.accumulate / (mesh["data"] * mesh["fsdp"]),
        prefix=slots + TEXT_TOKENS,
        segments=closed + data.open_per_face,
        segment_length=data.segment_length,
        labels=num_labels,
        lm_positions=(data.segment_length + 2) if data.open_per_face else 0,
    )


def plan_memory(config: Experiment, mesh: Mesh, trained: Any, frozen: Any, shapes: Shapes) -> MemoryPlan:
    """Bytes per device of one training step.

    `trained` and `frozen` are flat trees of shapes ({path: ShapeDtypeStruct}); `mesh` is sizes by axis name.
    """
    model = config.model
    align = config.train.stage != "instruct"
    floats = bytes_per_device(_as(trained, np.float32), mesh)
    frozen_dtype = jnp.dtype(config.train.frozen_dtype)
    size = jnp.dtype(model.dtype).itemsize
    used = {path: leaf for path, leaf in frozen.items() if not (align and path.startswith("llm/"))}
    encoders = _encoder_bytes(model, shapes.faces, size, mesh["tensor"], trained)
    llm = 0.0 if align else _llm_bytes(model, shapes, size, mesh["tensor"])
    # Logits, their log-softmax and their gradient, in float32.
    vocab = model.llm.vocab_size / mesh["tensor"]
    logits = 0.0 if align else 3 * 4 * shapes.faces * shapes.lm_positions * vocab
    return MemoryPlan(
        frozen=frozen_bytes(config, mesh, frozen),
        trained=floats,
        # One set at a time; with accumulation the sum and the new one.
        gradients=floats * (2 if config.train.accumulate > 1 else 1),
        optimiser=2 * floats,
        average=floats if config.train.ema else 0,
        gathered=_gathered(_as(used, frozen_dtype), mesh) if mesh["fsdp"] > 1 else 0,
        encoders=encoders,
        llm=llm,
        logits=logits,
        batch=_batch_bytes(config, shapes),
    )


def frozen_bytes(config: Experiment, mesh: Mesh, frozen: Any, *, differentiated: bool = True) -> float:
    """Bytes per device of the frozen parameters; `differentiated`: of a training step, where fp8 has two layouts."""
    leaves = _as(frozen, jnp.dtype(config.train.frozen_dtype))
    precision = config.model.frozen_precision
    if precision != "bf16":
        dtype = jnp.bfloat16 if precision == "fp8" and differentiated else jnp.int8
        leaves |= _as({path: leaf for path, leaf in frozen.items() if _ROUNDED.fullmatch(path)}, dtype)
    return bytes_per_device(leaves, mesh)


def kv_cache_bytes(config: Experiment, shapes: Shapes, faces: int, tensor: int) -> float:
    """Bytes per device of the key/value cache for `faces` prefixes and all their segments; in 8 bits the prefix alone is."""
    llm = config.model.llm
    heads = llm.num_kv_heads / (tensor if llm.num_kv_heads % tensor == 0 else 1)
    size = jnp.dtype(config.model.dtype).itemsize
    # With a scale a token and head, in float32.
    prefix = 1 + 4 / llm.head_dim if config.model.kv_precision == "int8" else size
    elements = shapes.prefix * prefix + (shapes.tokens - shapes.prefix) * size
    return 2 * llm.num_layers * heads * llm.head_dim * faces * elements


def advise(config: Experiment, mesh: Mesh, fits: Callable[[Experiment, Mesh], bool]) -> list[str]:
    """What to change so that `fits(config, mesh)` holds: the first single changes, then all of them together.

    Returns lines a user can act on; empty when nothing here helps.
    """
    options = _options(config, mesh)
    alone = [text for text, change in options if fits(*change(config, mesh))]
    if alone:
        return alone
    flags: dict[str, str] = {}
    for text, change in options:
        config, mesh = change(config, mesh)
        # Of a series (accumulate 2, 4, 8) the last one stays.
        flags[text.split()[0]] = text.split(" (")[0]
        if fits(config, mesh):
            return [" ".join(flags.values())]
    for factor in (2, 4, 8, 16, 32, 64):
        larger = {**mesh, "fsdp": mesh["fsdp"] * factor}
        if fits(config, larger):
            return [" ".join((flags | {"--mesh": f"{_mesh_flag(larger)} ({factor}x the devices)"}).values())]
    return []


def _options(config: Experiment, mesh: Mesh) -> list[tuple[str, Change]]:
    """Flags that lower the memory of a step, and what each does to a config and a mesh."""

    def model(**fields: Any) -> Change:
        return lambda config, mesh: (replace(config, model=replace(config.model, **fields)), mesh)

    def train(**fields: Any) -> Change:
        return lambda config, mesh: (replace(config, train=replace(config.train, **fields)), mesh)

    def cut(sizes: Mesh) -> Change:
        return lambda config, _: (config, sizes)

    options = []
    if config.model.remat != "full":
        options.append(("--model.remat full", model(remat="full")))
    if config.train.frozen_dtype == "float32":
        options.append(("--train.frozen-dtype bfloat16", train(frozen_dtype="bfloat16")))
    if config.model.dtype == "float32":
        options.append(("--model.dtype bfloat16", model(dtype="bfloat16")))
    shards = mesh["data"] * mesh["fsdp"]
    for accumulate in _doublings(config.train.accumulate, config.data.batch_size // shards):
        options.append((f"--train.accumulate {accumulate}", train(accumulate=accumulate)))
    for fsdp in _doublings(mesh["fsdp"], shards):
        if shards % fsdp == 0:
            sizes = {**mesh, "data": shards // fsdp, "fsdp": fsdp}
            options.append((f"{_mesh_flag(sizes)} (cut parameters instead of copying them)", cut(sizes)))
    return options


def _mesh_flag(mesh: Mesh) -> str:
    return f"--mesh {','.join(f'{axis}={size}' for axis, size in mesh.items())}"


def _doublings(start: int, end: int) -> list[int]:
    return [start * 2**i for i in range(1, 20) if start * 2**i <= end]


def _as(tree: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    return {path: jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in tree.items()}


def _gathered(frozen: Mapping[str, Any], mesh: Mesh) -> float:
    """Two layers' weights, gathered from the fsdp axis: the one that computes and the one on its way."""
    whole = {**mesh, "fsdp": 1}
    layers = {path: leaf for path, leaf in frozen.items() if path.startswith("llm/layers/")}
    if not layers:
        return 0.0
    depth = next(iter(layers.values())).shape[0]
    outside = [
        bytes_per_device({path: leaf}, whole) for path, leaf in frozen.items() if "embed" in path or "lm_head" in path
    ]
    return 2 * bytes_per_device(layers, whole) / depth + max(outside, default=0)


def _llm_bytes(model: ModelConfig, shapes: Shapes, size: int, tensor: int) -> float:
    c = model.llm
    d, heads, kv = c.hidden_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    tokens = shapes.faces * shapes.tokens
    # Elements a token that the backward pass wants of one layer. Whole on every device: the residual stream, the
    # norms' outputs, o and down; cut over `tensor`: q, k, v, attention, gate, up, silu and their product.
    named = 2 * d + c.lora.rank * len(c.lora.targets) + (heads + 2 * kv + 2 * c.intermediate_size) / tensor
    everything = 5 * d + (4 * heads + 4 * kv + 4 * c.intermediate_size) / tensor
    # Attention weights in float32 (logits and softmax), where they are materialised.
    pairs = shapes.prefix**2 + shapes.segments * shapes.segment_length * (shapes.prefix + shapes.segment_length)
    weights = attended = 0.0
    # What "flash" has no kernel for it leaves to plain products.
    windowed = 0 < c.sliding_window < shapes.prefix + shapes.segment_length
    plain = c.bidirectional_prefix or c.attention_softcap > 0 or windowed
    if plain or model.attention == "xla":
        weights = 2 * 4 * shapes.faces * pairs * c.num_heads / (tensor if c.num_heads % tensor == 0 else 1)
    if model.attention != "xla":
        # `models.flash` keeps its output for its own backward pass.
        attended = heads / tensor * size * tokens
    kept = {
        # Beside what one layer works on: the norms' inputs in float32, and the parts of silu.
        "none": ((everything + 2 * c.intermediate_size / tensor) * size + 2 * d * (4 - size)) * tokens + weights,
        # The layer's input is the residual stream before it; `models.llm` names the rest.
        "dots": named * size * tokens + attended,
        "full": d * size * tokens,
    }
    working = 0.0 if model.remat == "none" else everything * size * tokens + weights
    return c.num_layers * kept[model.remat] + working


def _encoder_bytes(model: ModelConfig, faces: float, size: int, tensor: int, trained: Mapping[str, Any]) -> float:
    towers = [("image_encoder", model.image_encoder)]
    if model.use_segmentation:
        towers.append(("segmentation_encoder", model.segmentation_encoder))
    total = 0.0
    for name, vit in towers:
        layer = _vit_layer(vit, faces, size, tensor, model.attention)
        learns = any(path.startswith(name) for path in trained)
        residual = faces * (vit.grid**2 + vit.extra_tokens) * vit.hidden_size * size
        kept = {"none": layer, "dots": layer / 2, "full": residual}[model.remat] if learns else 0.0
        total += vit.num_layers * kept + layer
    return total


def _vit_layer(vit: VitConfig, faces: float, size: int, tensor: int, attention: str) -> float:
    tokens = vit.grid**2 + vit.extra_tokens
    elements = tokens * (5 * vit.hidden_size + (4 * vit.hidden_size + 2 * vit.intermediate_size) / tensor)
    heads = vit.num_heads / (tensor if vit.num_heads % tensor == 0 else 1)
    weights = 2 * 4 * heads * tokens**2 if attention == "xla" else 0.0
    return faces * (elements * size + weights)


def _batch_bytes(config: Experiment, shapes: Shapes) -> float:
    pixels = 4 * 3 * (config.model.image_encoder.image_size**2 + config.model.segmentation_encoder.image_size**2)
    raw = 4 * config.data.image_size**2
    text = 4 * 2 * shapes.tokens + 8 * shapes.labels
    return math.ceil(shapes.faces) * (pixels + raw * config.train.accumulate + text)
