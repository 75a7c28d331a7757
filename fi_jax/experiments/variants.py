"""What an ablation changes, as data: each variant is a name and the config fields that differ from the full model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fi_jax.config import Experiment
from fi_jax.config_tree import to_dict
from fi_jax.errors import UserError, require_choice
from fi_jax.experiments.points import apply

FULL = "full"


@dataclass(frozen=True)
class Variant:
    """One row of the table. `fields` are dotted config fields and their values."""

    name: str
    title: str
    fields: Mapping[str, Any]


_NO_LCM = {"loss.logic": 0.0, "loss.head_logic": 0.0}
_NO_CCM = {"model.knowledge.enabled": False}
_NO_MAP = {"model.use_segmentation": False}

# The paper ablates the map and the two modules; the rest is ours.
VARIANTS: tuple[Variant, ...] = (
    Variant(FULL, "full", {}),
    Variant("no_segmentation", "without segmentation", _NO_MAP),
    Variant("other_map", "another face's map", {"model.segmentation_input": "other_map"}),
    Variant("second_picture", "the picture twice, no map", {"model.segmentation_input": "picture"}),
    Variant("no_ccm", "without CCM", _NO_CCM),
    Variant("no_lcm", "without LCM", _NO_LCM),
    Variant("no_knowledge", "without CCM and LCM", _NO_CCM | _NO_LCM),
    Variant("plain", "without segmentation, CCM and LCM", _NO_MAP | _NO_CCM | _NO_LCM),
    Variant("semantic", "L_c: semantic", {"loss.logic_form": "semantic"}),
    Variant("lcp", "L_c: lcp", {"loss.logic_form": "lcp"}),
    *(Variant(f"tau_{tau:g}", f"τ = {tau:g}", {"model.knowledge.tau": tau}) for tau in (0.2, 0.3, 0.4, 0.5, 0.6)),
    *(Variant(f"omega_{w:g}", f"ω = {w:g}", {"model.knowledge.omega": w}) for w in (0.0, 0.1, 0.2, 0.4, 0.6)),
    *(Variant(f"depth_{n}", f"{n} GCN layer{'s' * (n > 1)}", {"model.knowledge.depth": n}) for n in (1, 2, 3)),
    Variant("lift", "graph: lift", {"model.knowledge.graph": "lift"}),
    Variant("shuffled", "graph: shuffled", {"model.knowledge.graph": "shuffled"}),
)
NAMES = tuple(variant.name for variant in VARIANTS)


def chosen(base: Experiment, only: Sequence[str] = (), frozen: bool = False) -> list[tuple[Variant, Experiment]]:
    """Returns the variants of `base` and their configs, the full model first.

    A variant that is what the full model is already (τ = 0.4 where the config says so) is left out. So are, with `frozen`
    encoders, those whose encoders would see something else.

    Raises:
      UserError: an unknown name, one that frozen encoders rule out, or nothing but the full model is left.
    """
    for name in only:
        require_choice("--only", name, NAMES)
    own_encoders = [v.name for v in VARIANTS if frozen and "model.segmentation_input" in v.fields]
    if ruled_out := [name for name in only if name in own_encoders]:
        raise UserError(f"the encoders of {', '.join(ruled_out)} must be trained, so leave out --frozen")
    only = only or [name for name in NAMES if name not in own_encoders]
    wanted = [v for v in VARIANTS if v.name == FULL or v.name in only]
    made = [(variant, apply(base, dict(variant.fields))) for variant in wanted]
    plain = to_dict(base)
    kept = [(variant, config) for variant, config in made if variant.name == FULL or to_dict(config) != plain]
    if len(kept) == 1 and only != [FULL]:
        raise UserError(f"the variants {', '.join(only)} are what config '{base.name}' is already; choose others")
    return kept
