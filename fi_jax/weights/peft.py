"""LoRA adapters of the LLM as PEFT keeps them (`adapter_config.json`, `adapter_model.safetensors`), both ways."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fi_jax.config import LlmConfig, LoraConfig
from fi_jax.errors import UserError
from fi_jax.files import write_json
from fi_jax.weights import layouts, leaf_table
from fi_jax.weights.json_fields import Fields, read_object
from fi_jax.weights.leaf import Leaf, by_source
from fi_jax.weights.leaves import read_safetensors, write_safetensors
from fi_jax.weights.matching import table_key
from fi_jax.weights.stream import file_hash

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Ways to start an adapter that take what it holds out of the base's own weights.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
_NOT_PLAIN = (
    *("use_dora", "use_qalora", "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication"),
    *("target_parameters", "trainable_token_indices", "alora_invocation_tokens"),
)


@dataclass(frozen=True)
class Adapter:
    """An imported adapter: `leaves` are flat ("layers/attn/q_proj/lora_a" -> `l in r`), ready below `llm/`."""

    lora: LoraConfig
    leaves: dict[str, np.ndarray]
    # What adapter_config.json calls the base.
    base: str
    # Hashes of contents that the base may have (`export_peft` writes them); empty for an adapter made elsewhere.
    base_hashes: tuple[str, ...] = ()
    # SHA-256 (hex) of the weights file.
    hash: str = ""


def export_peft(
    leaves: Mapping[str, np.ndarray],
    config: LlmConfig,
    folder: Path,
    *,
    base_name: str,
    base_hash: str,
    made_from_hash: str = "",
    in_llava: bool = False,
) -> None:
    """Writes an adapter folder that `peft.PeftModel.from_pretrained` loads.

    A layer whose A and B are both zero has no adapter (see `import_peft`) and is left out.

    Args:
      leaves: flat leaves below `llm/` ("layers/attn/q_proj/lora_a", …); others than adapters are ignored.
      config: of the LLM, with its `lora`.
      base_name: what transformers' `from_pretrained` takes: a Hub name or a folder.
      base_hash: names the base's contents (`stream.checkpoint_hash`); kept in the weights' metadata.
      made_from_hash: of what the base was made from, where it is a copy of our own making (a GGUF file's).
      in_llava: the base is a LLaVA or its like, whose vision tower has layers of the same names.

    Raises:
      UserError: the model has no adapter.
    """
    tensors: dict[str, np.ndarray] = {}
    # With every layer among the targets, so that a fused layer has a block for each of ours, zeros where there is none.
    every = replace(config, lora=LoraConfig(config.lora.rank))
    rows = leaf_table.adapters(leaf_table.llm_leaves(every, "model.language_model." if in_llava else "model."))
    ranks: dict[str, int] = {}
    sides = by_source(rows)
    for key_a in (key for key in sides if ".lora_A." in key):
        key_b = key_a.replace(".lora_A.", ".lora_B.")
        a, b = _joined(sides[key_a], sides[key_b], leaves)
        if np.any(a) or np.any(b):
            tensors |= {_PREFIX + key_a: a, _PREFIX + key_b: b}
            if len(sides[key_a]) > 1:
                ranks[key_a.split(".lora_A.")[0].rpartition(".")[2]] = len(a)
    if not tensors:
        raise UserError("the model has no LoRA adapter to export (llm.lora.rank is 0, or no layer has one)")
    modules = sorted({key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in tensors})
    names = sorted({module.rpartition(".")[2] for module in modules})
    everywhere = len(modules) == len(names) * config.num_layers
    # The shortest exact statement: names alone would also match a LLaVA's vision tower or layers left out.
    targets: Any = names if everywhere else modules
    if in_llava and everywhere:
        targets = rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(names)})"
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        # Layers that the base keeps as one hold our adapters of each as blocks, at the same alpha / rank.
        "rank_pattern": ranks,
        "alpha_pattern": {name: config.lora.alpha * rank / config.lora.rank for name, rank in ranks.items()},
        "target_modules": targets,
        "lora_dropout": config.lora.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, described, indent=2)
    metadata = {"base_name": base_name, "base_hash": base_hash, "made_from_hash": made_from_hash}
    metadata |= {"in_blocks": "true"} if ranks else {}
    write_safetensors(folder / WEIGHTS, tensors, metadata)


def _joined(
    sides_a: Sequence[tuple[Leaf, int]], sides_b: Sequence[tuple[Leaf, int]], leaves: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A `r i` and B `o r` of one layer of the base: of several of ours, one block each (zeros: it has no adapter)."""
    size_a, (size_b, rank) = sides_a[0][0].source_shape, sides_b[0][0].source_shape
    a, b = np.zeros((rank * len(sides_a), size_a[1]), np.float32), np.zeros((size_b, rank * len(sides_b)), np.float32)
    for i, ((leaf_a, layer), (leaf_b, _)) in enumerate(zip(sides_a, sides_b, strict=True)):
        if leaf_a.path in leaves:
            own = slice(i * rank, (i + 1) * rank)
            a[own] = leaf_a.to_source(leaves[leaf_a.path][layer])
            b[leaf_b.own_rows, own] = leaf_b.to_source(leaves[leaf_b.path][layer])
    return a, b


def import_peft(folder: Path, config: LlmConfig) -> Adapter:
    """Reads an adapter that PEFT trained, as leaves of our LLM of shape `config`.

    Layers without an adapter get zeros for A and B: they stay without one, under training too, since each is the
    other's gradient. Modules of unequal rank are padded with zeros to the largest, and modules of an unequal
    alpha/rank have the difference folded into B; otherwise values are bit-equal to the file's.

    Raises:
      UserError: not a LoRA adapter of such an LLM; all keys that do not fit are named at once.
    """
    described = read_object(folder / CONFIG, f"{folder} has no {CONFIG}: not a folder that PEFT saved")
    settings = Fields(described, str(folder / CONFIG))
    _require_plain_lora(settings)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; save the adapter with safe_serialization=True")
    tensors, metadata = read_safetensors(folder / WEIGHTS)
    modules = _modules(tensors, config, folder, in_blocks=metadata.get("in_blocks") == "true")
    alphas = _alphas(settings, [module.name for module in modules])
    rslora = settings.flag("use_rslora", False)
    scales = [
        alpha / (math.sqrt(module.file_rank) if rslora else module.file_rank)
        for module, alpha in zip(modules, alphas, strict=True)
    ]
    # The scale of the largest rank, so that an adapter of one rank and one alpha comes through untouched.
    rank = max(module.rank for module in modules)
    largest = next(i for i, module in enumerate(modules) if module.rank == rank)
    alpha = alphas[largest] if not rslora and modules[largest].file_rank == rank else scales[largest] * rank
    leaves: dict[str, np.ndarray] = {}
    for module, scale in zip(modules, scales, strict=True):
        size_in, size_out = module.a.shape[0], module.b.shape[1]
        a = leaves.setdefault(f"{module.path}/lora_a", np.zeros((config.num_layers, size_in, rank), np.float32))
        b = leaves.setdefault(f"{module.path}/lora_b", np.zeros((config.num_layers, rank, size_out), np.float32))
        factor = scale / scales[largest]
        a[module.layer, :, : module.rank] = module.a
        b[module.layer, : module.rank] = module.b if factor == 1 else module.b * np.float32(factor)
    lora = LoraConfig(rank, float(alpha), tuple(sorted({path.split("/")[-2] for path in leaves})))
    hashes = tuple(metadata[name] for name in ("base_hash", "made_from_hash") if metadata.get(name))
    return Adapter(lora, leaves, settings.text("base_model_name_or_path", ""), hashes, file_hash(folder / WEIGHTS))


class _Module(NamedTuple):
    """One adapted linear layer: A is `in r`, B `r out`."""

    # As the file names it, without PEFT's own prefix.
    name: str
    # Of our stacked leaves, "layers/attn/q_proj".
    path: str
    layer: int
    a: np.ndarray
    b: np.ndarray
    # Of the file's layer, which may hold several of ours.
    file_rank: int

    @property
    def rank(self) -> int:
        return self.a.shape[1]


def _modules(tensors: Mapping[str, np.ndarray], config: LlmConfig, folder: Path, in_blocks: bool) -> list[_Module]:
    """Accounts for every tensor of an adapter; its rank is its own, all else must be as in the leaf table.

    Where the base keeps several of our layers as one (q, k and v), each gets its rows of B and the whole of A;
    `in_blocks`: its own block of both, as `export_peft` wrote them.
    """
    table = leaf_table.adapters(leaf_table.llm_leaves(replace(config, lora=LoraConfig(1))))
    wanted = by_source(table)
    sides: dict[str, dict[str, tuple[str, np.ndarray]]] = {}
    wrong = []
    for key, tensor in tensors.items():
        module, _, side = table_key(key, layouts.PEFT).rpartition(".lora_")
        ((leaf, _), *_) = wanted.get(f"{module}.lora_{side}", [(None, 0)])
        # The axis that is not the rank's.
        axis = 1 if side == "A.weight" else 0
        if leaf is None or tensor.ndim != 2 or tensor.shape[axis] != leaf.source_shape[axis]:
            wrong.append(f"{key} {list(tensor.shape)}")
        elif side in sides.setdefault(module, {}):
            wrong.append(f"{key} is stored twice")
        else:
            sides[module][side] = (key, np.asarray(tensor, np.float32).T)
    modules = []
    for name, pair in sides.items():
        if len(pair) < 2:
            wrong.append(f"{name} has one side only")
            continue
        (key, a), (_, b) = pair["A.weight"], pair["B.weight"]
        if a.shape[1] != b.shape[0] or not a.shape[1]:
            wrong.append(f"{name} has rank {a.shape[1]} in A and {b.shape[0]} in B")
            continue
        own_name = key.removeprefix(_PREFIX).rpartition(".lora_")[0]
        parts = wanted[f"{name}.lora_B.weight"]
        rank = a.shape[1] // len(parts) if in_blocks else a.shape[1]
        for i, (leaf, layer) in enumerate(parts):
            own = slice(i * rank, (i + 1) * rank) if in_blocks else slice(None)
            own_a, own_b = a[:, own], b[own, leaf.own_rows]
            if len(parts) == 1 or np.any(own_a) or np.any(own_b):
                path = leaf.path.removesuffix("/lora_b")
                modules.append(_Module(own_name, path, layer, own_a, own_b, a.shape[1]))
    if wrong or not modules:
        raise UserError(
            f"{folder} is no LoRA adapter of this language model: {', '.join(wrong) or 'no adapter tensor'}"
        )
    return modules


def _alphas(settings: Fields, modules: Sequence[str]) -> list[float]:
    """Returns alpha of every module, with the exceptions of `alpha_pattern` as PEFT matches them.

    A pattern that matches no module is refused: it was meant for one.
    """
    patterns, default = settings.group("alpha_pattern"), settings.number("lora_alpha", 8)
    matched: dict[str, str] = {}
    for pattern in patterns.values:
        try:
            found = [name for name in modules if re.match(rf"(.*\.)?({pattern})$", name)]
        except re.error as error:
            raise UserError(f"{patterns.where}: '{pattern}' is no regular expression ({error})") from None
        if not found:
            raise UserError(f"{patterns.where}: '{pattern}' matches no module of the adapter, such as {modules[0]}")
        for name in found:
            matched.setdefault(name, pattern)
    return [patterns.number(matched[name]) if name in matched else default for name in modules]


def _require_plain_lora(settings: Fields) -> None:
    unknown = [] if settings.get("peft_type") == "LORA" else [f"peft_type {settings.get('peft_type')}"]
    unknown += [name for name in _NOT_PLAIN if settings.get(name)]
    start = str(settings.get("init_lora_weights"))
    if start.startswith(_CHANGES_BASE):
        unknown.append(f"init_lora_weights {start}, which changes the base")
    if (bias := settings.get("bias", "none")) != "none":
        unknown.append(f"bias {bias}")
    if unknown:
        raise UserError(f"{settings.where} asks for {', '.join(unknown)}; only plain LoRA can be imported")
