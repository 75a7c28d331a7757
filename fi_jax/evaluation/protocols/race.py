"""Race: one question, each set's own classes, never mapped onto another set's.

Questions: `race:fairface` (7 classes), `race:utkface` (5), `race:raf_db` (3). Metric: accuracy, as FairFace
(Kärkkäinen & Joo, WACV 2021) reports; balanced accuracy and macro-F1 beside it because the classes are uneven
outside FairFace. The classes are the annotators' reading of a picture; the task exists to measure bias and to
follow the paper's protocol, and is not for use on people.
"""

from collections.abc import Mapping

from fi_jax.data.datasets import find_dataset
from fi_jax.evaluation.columns import Block
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.choice import ACCURACY, BALANCED_ACCURACY, MACRO_F1, score_choice
from fi_jax.evaluation.protocols.scoring import Options

FAMILIES = ("race",)
METRICS = (ACCURACY, BALANCED_ACCURACY, MACRO_F1)


def questions(dataset: str):
    """The questions this family asks about `dataset`."""
    return tuple(q for q in find_dataset(dataset).questions if q.family in FAMILIES)


def judge(block: Block, baselines: Mapping[str, Answer], options: Options) -> dict[str, dict]:
    """Returns `{"race": scores}`; see `protocols.choice.score_choice`. Empty when no truth is known."""
    found = {
        a.task: score_choice(a, block.groups, METRICS, options, baselines.get(a.question))
        for a in block.of_task(*FAMILIES)
    }
    return {task: result for task, result in found.items() if result}
