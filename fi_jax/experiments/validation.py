"""Joins training and evaluation: the same questions and protocols as `fi-jax evaluate`, asked while a run trains."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from fi_jax.data.datasets import find_dataset
from fi_jax.data.pipeline import open_dataset
from fi_jax.errors import UserError
from fi_jax.evaluation.answering import predict
from fi_jax.evaluation.predictions import Prediction
from fi_jax.evaluation.results import results_of
from fi_jax.evaluation.summarise import summarise
from fi_jax.inference.answerer import Answerer
from fi_jax.parallel.mesh import run_on
from fi_jax.training.callbacks import Line
from fi_jax.training.optimizer import merge_params
from fi_jax.training.setup import Setup
from fi_jax.training.state import TrainState, final_leaves
from fi_jax.training.validation import Judge
from fi_jax.weights.tokenizers import load_tokenizer

# Headlines that are averaged into `val/accuracy`: shares of right answers, whatever was asked.
_ACCURACIES = ("accuracy", "mean_accuracy")


def make_judge(setup: Setup) -> Judge:
    """Returns what judges a state on the setup's validation faces; the model is compiled once for all of them.

    Its metrics are named `val/SOURCE/DATASET/TASK/METRIC` (source `llm` or `head`); `val/accuracy` is the mean of the
    accuracies of all tasks and sets, by the LLM where it is trained, else by the head (ours).

    Raises:
      UserError: the model can answer no question about any set.
    """
    config = setup.configs[0]
    tokenizer = load_tokenizer(config.weights)
    answerers = [
        Answerer(run_on(one, setup.mesh), {}, constants, tokenizer, setup.info)
        for one, constants in zip(setup.configs, setup.constants, strict=True)
    ]
    # Members differ in numbers alone: one compiled program serves them all.
    for other in answerers[1:]:
        other._faces, other._score = answerers[0]._faces, answerers[0]._score
        other._score_branches = answerers[0]._score_branches
    sets = dict.fromkeys(source.name for source in config.data.sources)
    asked = [(dataset.name, answerers[0].answerable(dataset.questions)) for dataset in map(find_dataset, sets)]
    asked = [(name, questions) for name, questions in asked if questions]
    if not asked:
        raise UserError(
            f"vocabulary '{setup.vocabulary.name}' knows no answer to any question about the validation faces"
        )
    data = replace(setup.data, cache_in_memory=False)
    size = config.data.batch_size // config.train.accumulate

    def answers(answerer: Answerer) -> Iterable[Prediction]:
        for name, questions in asked:
            records = [face for face in setup.mixture.validation if face.dataset == name]
            if records:
                faces = open_dataset(records, data, setup.vocabulary, setup.make_maps)
                by_llm = answerer.is_instruction_tuned
                yield from predict(answerer, records, faces, questions, batch_size=size, by_llm=by_llm, seen=True)

    def judge(state: TrainState, index: int) -> Line:
        answerer = answerers[index]
        answerer.params = merge_params(final_leaves(state), setup.inputs.frozen)
        return metrics_of(answers(answerer), config.data.schemas)

    return judge


def metrics_of(predictions: Iterable[Prediction], tables: Iterable[str] = ()) -> Line:
    """Returns every metric of the protocols by the names that are logged; what nothing was counted for is left out."""
    summary = summarise(predictions, resamples=1, consistent=False, tables=tables)
    line: Line = {}
    accuracies: dict[str, list[float]] = {}
    for result in results_of(summary):
        scores, headline = result.values["metrics"], result.values["headline"]
        found = {name: score["value"] for name, score in scores.items() if score["value"] is not None}
        line |= {f"val/{result.source}/{result.dataset}/{result.task}/{name}": value for name, value in found.items()}
        if headline in _ACCURACIES and headline in found:
            accuracies.setdefault(result.source, []).append(found[headline])
    if accuracies:
        line["val/accuracy"] = float(np.mean(accuracies.get("llm") or accuracies["head"]))
    return line
