"""Expression: one question, seven classes (angry, disgust, fear, happy, sad, surprise, neutral).

Question: `expression` (ExpW, RAF-DB basic). Metrics: accuracy (Zhang et al., ExpW, IJCV 2018; the usual figure on
RAF-DB) and macro-F1; balanced accuracy is the mean of the confusion matrix's diagonal, which RAF-DB's authors
(Li et al., CVPR 2017) recommend.
"""

from collections.abc import Mapping

from fi_jax.data.datasets import find_dataset
from fi_jax.evaluation.columns import Block
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.choice import ACCURACY, BALANCED_ACCURACY, MACRO_F1, score_choice
from fi_jax.evaluation.protocols.scoring import Options

FAMILIES = ("expression",)
METRICS = (ACCURACY, MACRO_F1, BALANCED_ACCURACY)


def questions(dataset: str):
    """The questions this family asks about `dataset`."""
    return tuple(q for q in find_dataset(dataset).questions if q.family in FAMILIES)


def judge(block: Block, baselines: Mapping[str, Answer], options: Options) -> dict[str, dict]:
    """Returns `{"expression": scores}`; see `protocols.choice.score_choice`. Empty when no truth is known."""
    found = {
        a.task: score_choice(a, block.groups, METRICS, options, baselines.get(a.question))
        for a in block.of_task(*FAMILIES)
    }
    return {task: result for task, result in found.items() if result}
