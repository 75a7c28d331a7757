"""Gender: one question, "male" or "female", as the releases code it.

Question: `gender` (FairFace, UTKFace, RAF-DB). Metric: accuracy, as FairFace (Kärkkäinen & Joo, WACV 2021) and
the UTKFace literature report; balanced accuracy beside it. Faces whose release says "unsure" (RAF-DB) are unknown.
The two classes are the annotators' reading of a picture, not a person's identity.
"""

from collections.abc import Mapping

from fi_jax.data.datasets import find_dataset
from fi_jax.evaluation.columns import Block
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.choice import ACCURACY, BALANCED_ACCURACY, MACRO_F1, score_choice
from fi_jax.evaluation.protocols.scoring import Options

FAMILIES = ("gender",)
METRICS = (ACCURACY, BALANCED_ACCURACY, MACRO_F1)


def questions(dataset: str):
    """The questions this family asks about `dataset`."""
    return tuple(q for q in find_dataset(dataset).questions if q.family in FAMILIES)


def judge(block: Block, baselines: Mapping[str, Answer], options: Options) -> dict[str, dict]:
    """Returns `{"gender": scores}`; see `protocols.choice.score_choice`. Empty when no truth is known."""
    found = {
        a.task: score_choice(a, block.groups, METRICS, options, baselines.get(a.question))
        for a in block.of_task(*FAMILIES)
    }
    return {task: result for task, result in found.items() if result}
