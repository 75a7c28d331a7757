"""The plan as one dict and as text: memory by use, collectives by kind, and what to change when it does not fit."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fi_jax.config import Experiment
from fi_jax.parallel.collectives import collectives
from fi_jax.parallel.memory import GIB, MARGIN, MemoryPlan, Shapes, advise, kv_cache_bytes, plan_memory, shapes_of

_NAMES = {
    "frozen": "frozen parameters",
    "trained": "trained parameters",
    "gradients": "gradients",
    "optimiser": "optimiser state",
    "average": "running average",
    "gathered": "gathered weights (fsdp)",
    "encoders": "encoder activations",
    "llm": "LLM activations",
    "logits": "token logits",
    "batch": "batch",
}


@dataclass(frozen=True)
class Request:
    """What is asked: a config on a mesh (sizes by axis), for devices of a size (0: not said)."""

    config: Experiment
    mesh: dict[str, int]
    memory_gib: float = 0.0
    # Faces at once in inference, for the KV cache.
    faces: int = 1


@dataclass(frozen=True)
class Facts:
    """What the plan is made of: parameter shapes ({path: shape with dtype}), counts, and the compiled step's text.

    `tpu` is what libtpu says of a topology: `topology`, `memory` (bytes by use), `flops`, `roofline` (seconds).
    """

    trained: dict[str, Any]
    frozen: dict[str, Any]
    num_labels: int
    num_questions: int
    hlo: str | None = None
    tpu: dict[str, Any] | None = None


def report(request: Request, facts: Facts) -> dict[str, Any]:
    """Makes the plan of one training step, and of inference, on each device."""
    config, sizes = request.config, request.mesh

    def shapes_on(config: Experiment, sizes: Mapping[str, int]) -> Shapes:
        return shapes_of(config, sizes, facts.num_labels, facts.num_questions)

    def memory(config: Experiment, sizes: Mapping[str, int]) -> MemoryPlan:
        return plan_memory(config, sizes, facts.trained, facts.frozen, shapes_on(config, sizes))

    plan, shapes = memory(config, sizes), shapes_on(config, sizes)
    cache = kv_cache_bytes(config, shapes, request.faces, sizes["tensor"])
    made: dict[str, Any] = {
        "config": config.name,
        "mesh": sizes,
        "parameters": {"trained": _count(facts.trained), "frozen": _count(facts.frozen)},
        "per_device_bytes": asdict(plan),
        "margin": MARGIN,
        "training_bytes": plan.training,
        "inference_bytes": (plan.frozen + plan.trained + cache) * (1 + MARGIN),
        "kv_cache_bytes": cache,
        "tokens_per_face": shapes.tokens,
        "memory_gib": request.memory_gib or None,
        "fits": None,
        "advice": [],
        "collectives": None if facts.hlo is None else [asdict(one) for one in collectives(facts.hlo, sizes)],
        "tpu": facts.tpu,
    }
    if request.memory_gib:
        limit = request.memory_gib * GIB
        # What the compiler says of a TPU counts, not the model.
        made["fits"] = (facts.tpu["memory"]["all"] if facts.tpu else plan.training) <= limit
        if not made["fits"]:
            made["advice"] = advise(config, sizes, lambda c, m: memory(c, m).training <= limit)
    return made


def render(made: dict[str, Any], as_json: bool = False) -> str:
    """The plan as text for people, or as JSON."""
    if as_json:
        return json.dumps(made, indent=2)
    mesh = " x ".join(f"{axis} {size}" for axis, size in made["mesh"].items())
    count = made["parameters"]
    lines = [
        f"{made['config']} on {mesh}: {count['trained'] / 1e6:.1f} M trained and {count['frozen'] / 1e6:.1f} M frozen "
        f"parameters, {made['tokens_per_face']} tokens a face",
        "",
        "per device, one training step (analytic model)",
    ]
    lines += [f"  {_NAMES[name]:<26}{_size(value)}" for name, value in made["per_device_bytes"].items() if value]
    lines += [f"  {'compiler and runtime':<26}{_size(made['training_bytes'] * MARGIN / (1 + MARGIN))}"]
    lines += [f"  {'all':<26}{_size(made['training_bytes'])}", ""]
    lines += [
        f"per device, inference: {_size(made['inference_bytes']).strip()}, of which KV cache {_size(made['kv_cache_bytes']).strip()}"
    ]
    if made["collectives"] is not None:
        lines += ["", "between devices, one training step (compiled)"]
        lines += [
            f"  {one['kind']:<26}{_size(one['bytes'])}   in {one['count']} calls"
            + (f", over {one['axes']}" if one["axes"] else "")
            for one in made["collectives"]
        ]
        if not made["collectives"]:
            lines += ["  nothing"]
    if made["tpu"]:
        tpu = made["tpu"]
        lines += ["", f"per chip of {tpu['topology']}, one training step, as its compiler says"]
        lines += [f"  {name:<26}{_size(value)}" for name, value in tpu["memory"].items()]
        lines += [f"  {'matrix products':<26}{tpu['flops'] / 1e12:9.3f} TFLOP"]
        for name, seconds in tpu["roofline"].items():
            lines += [f"  {'at least, by ' + name.removesuffix('_s'):<26}{seconds * 1e3:9.2f} ms"]
    if made["fits"] is not None:
        word = "fits into" if made["fits"] else "does not fit into"
        lines += ["", f"{word} {made['memory_gib']:g} GiB a device"]
        if not made["fits"]:
            lines += [f"  fits with {text}" for text in made["advice"]] or [
                "  no setting here makes it fit; use a smaller model or larger devices"
            ]
    return "\n".join(lines)


def _count(shapes: dict[str, Any]) -> int:
    return sum(leaf.size for leaf in shapes.values())


def _size(value: float) -> str:
    for unit, factor in (("GiB", GIB), ("MiB", 2**20)):
        if value >= factor:
            return f"{value / factor:9.2f} {unit}"
    return f"{value / 1024:9.2f} KiB"
