"""What an ablation changes, as data: each variant is a name and the config fields that differ from the full model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Condition:
    """What a table makes hard: few labelled faces (0: all of them), a share of wrong labels, labels that no face has.

    With `folds`, the labels are cut into so many parts; each is left out in turn, and judged where it was.
    """

    labelled: int = 0
    flipped: float = 0.0
    folds: int = 0

    @property
    def name(self) -> str:
        """Names files and rows."""
        folds = f"-fold{self.folds}" if self.folds else ""
        return f"{self.labelled or 'all'}{f'-flip{self.flipped:g}' if self.flipped else ''}{folds}"


@dataclass(frozen=True)
class Table:
    """One question of the ablation: variants, the first of which the others are compared with, under conditions."""

    title: str
    variants: tuple[Variant, ...]
    # Under none, every variant is the config's own training with these fields.
    conditions: tuple[Condition, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


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

_SCORES = {"model.knowledge.score_graph": "lift"}
# Where labels are few, the counts say more than could be learnt.
_COUNTED = {"model.knowledge.score_rank": 0, "train.learning_rate_scales": [["head/relations/.*", 0.1]]}
_NOTHING = Variant("none", "neither", _NO_CCM)
_BY_SCORES = Variant("scores", "score-level graph", _NO_CCM | _SCORES | _COUNTED)
_ANCHORED = {"loss.logic": 1.0, "loss.head_logic": 1.0, "loss.logic_scope": "anchored"}

# Beside the parts above, what docs/ablation.md asks. Heads over features that no label has shaped:
FEW_LABELS = Table(
    "few labels",
    (
        _NOTHING,
        Variant("gcn", "the paper's graph", {}),
        Variant("gcn_shuffled", "the paper's graph, shuffled", {"model.knowledge.graph": "shuffled"}),
        _BY_SCORES,
        Variant(
            "scores_shuffled", "score-level, shuffled", _NO_CCM | _COUNTED | {"model.knowledge.score_graph": "shuffled"}
        ),
    ),
    tuple(Condition(labelled) for labelled in (30, 100, 300, 1000, 0)),
)
NOISY_LABELS = Table(
    "noisy labels",
    (
        _NOTHING,
        Variant("logic", "anchored L_c", _NO_CCM | {"loss.head_logic": 1.0}),
        _BY_SCORES,
        Variant("both", "both", _NO_CCM | _SCORES | _COUNTED | {"loss.head_logic": 1.0}),
    ),
    tuple(Condition(1000, flipped) for flipped in (0.0, 0.2, 0.4)),
)
# How strong the counted graph is to be, asked of faces that judge nothing else (--split val).
STRENGTH = Table(
    "strength of the score-level graph",
    (
        _NOTHING,
        *(
            Variant(
                f"strength_{s:g}",
                f"strength {s:g}",
                _NO_CCM | _SCORES | _COUNTED | {"model.knowledge.score_strength": s},
            )
            for s in (0.1, 0.2, 0.4, 0.8, 1.6)
        ),
    ),
    (Condition(300),),
)
# Labels that no face has, known by the words of their prompt: and by how others go with them, or by what the words say of that.
_FIXED = {"train.learning_rate_scales": [["head/relations/strength", 0.0]]}
LEFT_OUT = Table(
    "labels left out",
    (
        Variant("none", "its words alone", _NO_CCM),
        Variant("words", "edges by words", _NO_CCM | _SCORES | _FIXED | {"model.knowledge.score_strength": 0.0}),
        Variant("counted", "counted edges", _NO_CCM | _SCORES | _FIXED | {"model.knowledge.score_rank": 0}),
        Variant("both", "both", _NO_CCM | _SCORES | _FIXED),
    ),
    (Condition(folds=5),),
)
# Whole trainings:
MISSING = Table(
    "missing annotations",
    (
        Variant("logic_off", "without L_c", _NO_LCM),
        Variant("logic_vocabulary", "L_c: every rule", _ANCHORED | {"loss.logic_scope": "vocabulary"}),
        Variant("logic_anchored", "L_c: anchored", _ANCHORED),
    ),
    fields={"data.withheld": 0.5},
)
LLM = Table(
    "the LLM",
    (
        Variant("plain", "without CCM and LCM", _NO_CCM | _NO_LCM),
        Variant("llm_ccm", "the paper's graph", _NO_LCM),
        Variant("llm_lcm", "anchored L_c", _NO_CCM | _ANCHORED),
        Variant("llm_scores", "score-level graph", _NO_CCM | _NO_LCM | _SCORES),
        Variant("llm_all", "all", _ANCHORED | _SCORES),
    ),
)
TABLES: dict[str, Table] = {
    "few_labels": FEW_LABELS,
    "noisy_labels": NOISY_LABELS,
    "strength": STRENGTH,
    "left_out": LEFT_OUT,
    "missing": MISSING,
    "llm": LLM,
}


def of_table(base: Experiment, table: Table) -> list[tuple[Variant, Experiment]]:
    """Returns the variants of a table of whole trainings, and their configs."""
    return [(variant, apply(base, {**table.fields, **variant.fields})) for variant in table.variants]


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
