"""The plan as one dict and as text: memory by use, collectives by kind, and what to change when it does not fit."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fi_jax.config import Experiment
from fi_jax.parallel.collectives import Collective
from fi_jax.parallel.memory import (
    GIB,
    MARGIN,
    MemoryPlan,
    Shapes,
    advise,
    frozen_bytes,
    kv_cache_bytes,
    plan_memory,
    shapes_of,
)

# A training step, or the answers to one batch's questions.
Work = Literal["train", "score"]
_WORK = {"train": "one training step", "score": "the answers to one batch"}
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
    """What is asked: some work of a config on a mesh (sizes by axis), for devices of a size (0: not said)."""

    config: Experiment
    mesh: dict[str, int]
    memory_gib: float = 0.0
    # Faces at once in inference, for the KV cache.
    faces: int = 1
    work: Work = "train"


@dataclass(frozen=True)
class Facts:
    """What the plan is made of: parameter shapes ({path: shape with dtype}), counts, and what the compiled program sends.

    `chip` is what is known of a topology's chips (`topology.tpu_facts`, `gpu_facts`), `compile_s` processor seconds.
    """

    trained: dict[str, Any]
    frozen: dict[str, Any]
    num_labels: int
    num_questions: int
    sent: list[Collective] | None = None
    chip: dict[str, Any] | None = None
    compile_s: float | None = None


def report(request: Request, facts: Facts) -> dict[str, Any]:
    """Makes the plan of one training step or one batch of answers, and of inference, on each device."""
    config, sizes = request.config, request.mesh

    def shapes_on(config: Experiment, sizes: Mapping[str, int]) -> Shapes:
        return shapes_of(config, sizes, facts.num_labels, facts.num_questions)

    def memory(config: Experiment, sizes: Mapping[str, int]) -> MemoryPlan:
        return plan_memory(config, sizes, facts.trained, facts.frozen, shapes_on(config, sizes))

    def cache_bytes(config: Experiment, sizes: Mapping[str, int]) -> float:
        return kv_cache_bytes(config, shapes_on(config, sizes), request.faces, sizes["tensor"])

    def inference_bytes(config: Experiment, sizes: Mapping[str, int]) -> float:
        frozen = frozen_bytes(config, sizes, facts.frozen, differentiated=False)
        return (frozen + memory(config, sizes).trained + cache_bytes(config, sizes)) * (1 + MARGIN)

    def needed(config: Experiment, sizes: Mapping[str, int]) -> float:
        return memory(config, sizes).training if request.work == "train" else inference_bytes(config, sizes)

    plan, shapes = memory(config, sizes), shapes_on(config, sizes)
    made: dict[str, Any] = {
        "config": config.name,
        "work": request.work,
        "mesh": sizes,
        "parameters": {"trained": _count(facts.trained), "frozen": _count(facts.frozen)},
        "per_device_bytes": asdict(plan),
        "margin": MARGIN,
        "training_bytes": plan.training,
        "inference_bytes": inference_bytes(config, sizes),
        "kv_cache_bytes": cache_bytes(config, sizes),
        "tokens_per_face": shapes.tokens,
        "memory_gib": request.memory_gib or None,
        "fits": None,
        "advice": [],
        "collectives": None if facts.sent is None else [asdict(one) for one in facts.sent],
        "compile_s": facts.compile_s,
        "chip": facts.chip and dict(facts.chip),
    }
    if facts.chip and facts.chip["roofline"]:
        tokens = config.data.batch_size * shapes.tokens / math.prod(sizes.values())
        made["chip"]["tokens_s"] = tokens / max(facts.chip["roofline"].values())
    if request.memory_gib:
        limit = request.memory_gib * GIB
        # What the compiler says of a TPU counts, not the model.
        said = (facts.chip or {}).get("memory", {}).get("all")
        made["fits"] = (said or needed(config, sizes)) <= limit
        if not made["fits"]:
            made["advice"] = advise(config, sizes, lambda c, m: needed(c, m) <= limit)
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
        lines += [
            "",
            f"between devices, {_WORK[made['work']]} (compiled in {made['compile_s']:.0f} s of processor time)",
        ]
        lines += [
            f"  {one['kind']:<26}{_size(one['bytes'])}   in {one['count']} calls"
            + (f", over {one['axes']}" if one["axes"] else "")
            for one in made["collectives"]
        ]
        if not made["collectives"]:
            lines += ["  nothing"]
    if chip := made["chip"]:
        compiler = ", as its compiler says" if "memory" in chip else ""
        lines += ["", f"per chip of {chip['topology']}, {_WORK[made['work']]}{compiler}"]
        lines += [f"  {name:<26}{_size(value)}" for name, value in chip.get("memory", {}).items()]
        if chip["flops"]:
            lines += [f"  {'matrix products':<26}{chip['flops'] / 1e12:9.3f} TFLOP"]
        for name, seconds in chip["roofline"].items():
            lines += [f"  {'at least, by ' + name.removesuffix('_s'):<26}{seconds * 1e3:9.2f} ms"]
        if "tokens_s" in chip:
            lines += [f"  {'at most':<26}{chip['tokens_s']:9.0f} tokens/s"]
        if leaving := chip.get("between_hosts"):
            lines += [
                f"  {' and '.join(leaving)} cross(es) the network between hosts, which is slower than these links"
            ]
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
