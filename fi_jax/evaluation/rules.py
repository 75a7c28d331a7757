"""How often answers break the declared rules of `labels.rule_tables`, and what answering consistently costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from fi_jax.errors import UserError
from fi_jax.evaluation.columns import Block, Predictions
from fi_jax.evaluation.metrics import accuracy, as_confusion, confusion_cells, mean_attribute, mean_error
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.choice import majority_of
from fi_jax.evaluation.protocols.scoring import Metric, breakdown, number, scores
from fi_jax.knowledge.consistency import decode_consistent, log_odds
from fi_jax.knowledge.logic import RuleTable, broken, compile_rules
from fi_jax.labels.question_bank import is_built_in
from fi_jax.labels.registry import VOCABULARY_NAMES, vocabulary
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.rules import Rule
from fi_jax.labels.tasks import YEAR_CENTRES
from fi_jax.labels.vocabulary import Vocabulary

Array = np.ndarray
RATE = Metric("violation_rate", mean_error, higher_is_better=False, faces=lambda sums: sums[1])
MOST_EXAMPLES = 100
# Every face whose answers break a rule is an integer program of some milliseconds: beyond this many faces, an even
# sample of them is decoded.
MOST_DECODED = 2000


def asserted_labels(block: Block) -> set[str]:
    """Every label that an option of one of the block's questions asserts."""
    return {label for name in block.predictions for label in block.question(name).labels if label}


def vocabulary_of(block: Block) -> Vocabulary:
    """The smallest vocabulary that has every label the block's questions are about: the data set's own, if it fits."""
    if block.vocabulary:
        return block.vocabulary
    needed = asserted_labels(block)
    fitting = [v for v in map(vocabulary, VOCABULARY_NAMES) if needed <= set(v.names)]
    own = [v for v in fitting if v.name == block.dataset]
    if not fitting:
        raise UserError(f"no vocabulary has all labels that were asked about '{block.dataset}'")
    return min(own or fitting, key=len)


def rules_of(block: Block) -> tuple[Rule, ...]:
    """The rules that answers can break: not those between the options of one question, which is answered once."""
    alone = [{label for label in block.question(name).labels if label} for name in block.predictions]
    asked = asserted_labels(block)

    def can_break(rule: Rule) -> bool:
        named = {*rule.labels, *([rule.premise] if rule.premise else [])} & asked
        return not any(named <= labels for labels in alone)

    return tuple(rule for rule in rules_for(vocabulary_of(block)) if can_break(rule))


def _years_option(years: Float[Array, "f"]) -> Int[Array, "f"]:
    """The five-year bin of an age, −1 where unknown."""
    bins = np.abs(np.nan_to_num(years)[:, None] - np.asarray(YEAR_CENTRES)).argmin(-1)
    return np.where(np.isnan(years), -1, bins)


def predicted_options(column: Predictions) -> Int[Array, "f"]:
    """The option each face got: the answer's, or for ages the likeliest bin (the answer's bin without any)."""
    if column.task != "age_years":
        return column.answer
    likeliest = np.nan_to_num(column.probs, nan=-1).argmax(-1)
    return np.where(np.isnan(column.probs).any(-1), _years_option(column.predicted_years), likeliest)


def true_options(column: Predictions) -> Int[Array, "f"]:
    """The true option of each face, −1 where unknown; for ages the bin of the years."""
    return _years_option(column.years) if column.task == "age_years" else column.target


def to_labels(
    block: Block, options: Mapping[str, Float[Array, "f k"]]
) -> tuple[Float[Array, "f n"], Bool[Array, "f n"]]:
    """Returns the value of every label that an option asserts, and where there is one.

    `options` holds for each question a value of each of its options on each face, NaN where it was not answered. A
    label that several questions assert ("Male" by its own question and by "gender") follows the choice.
    """
    vocab, faces = vocabulary_of(block), len(next(iter(options.values())))
    values, scope = np.zeros((faces, len(vocab))), np.zeros((faces, len(vocab)), bool)
    for name in sorted(options, key=lambda n: not block.question(n).is_binary):
        given = ~np.isnan(options[name]).any(-1)
        for i, label in enumerate(block.question(name).labels):
            if label:
                place = vocab.index(label)
                values[given, place] = options[name][given, i]
                scope[:, place] |= given
    return values, scope


def hard_labels(block: Block, options: Mapping[str, Int[Array, "f"]]) -> tuple[Bool[Array, "f n"], Bool[Array, "f n"]]:
    """Returns `(labels, in_scope)` over the block's vocabulary, given each face's option of each question (−1: none)."""
    one_hot = {
        name: np.where(chosen[:, None] >= 0, chosen[:, None] == np.arange(len(block.question(name).options)), np.nan)
        for name, chosen in options.items()
    }
    values, scope = to_labels(block, one_hot)
    return values > 0.5, scope


def _rate_stats(breaks: Bool[Array, "f r"], mask: Bool[Array, "f r"]) -> Float[Array, "f 2"]:
    judged = mask.any(-1)
    return np.stack([breaks.any(-1) & judged, judged], -1).astype(np.float32)


def consistent_options(block: Block, faces: Int[Array, "f"]) -> dict[str, Int[Array, "f"]]:
    """Decodes some faces as the likeliest answers that break no rule: the option of each question, −1 without any."""
    vocab = vocabulary_of(block)
    odds, scope = to_labels(block, {name: log_odds(column.probs[faces]) for name, column in block.predictions.items()})
    hard = decode_consistent(odds, scope, compile_rules(rules_for(vocab), vocab))
    found = {}
    for name, column in block.predictions.items():
        places = [vocab.index(label) for label in block.question(name).labels if label]
        given = scope[:, places].all(-1)
        if block.question(name).is_binary:
            chosen = np.where(hard[:, places[0]], 0, 1)
        else:
            # Where a data set's classes are a part of a larger group, none may be left: the likeliest stands.
            chosen = np.where(hard[:, places].any(-1), hard[:, places].argmax(-1), predicted_options(column)[faces])
        found[name] = np.where(given, chosen, -1)
    return found


def consistency_cost(block: Block) -> dict[str, dict] | None:
    """Returns accuracy as answered and decoded consistently, a task; None where no answer has probabilities.

    After consistent decoding no rule is broken by construction, so its price in accuracy is what it is judged by.
    """
    judged = np.flatnonzero(np.any([~np.isnan(a.probs).any(-1) for a in block.predictions.values()], axis=0))
    if not len(judged):
        return None
    faces = judged[np.linspace(0, len(judged) - 1, min(MOST_DECODED, len(judged))).astype(int)]
    decoded = consistent_options(block, faces)
    cells: dict[str, list] = {}
    for name, column in block.predictions.items():
        target = np.where(decoded[name] >= 0, true_options(column)[faces], -1)
        if (target >= 0).any():
            both = (predicted_options(column)[faces], decoded[name])
            counts = [confusion_cells(target, options, len(column.options)).sum(0) for options in both]
            cells.setdefault(column.task, []).append(counts)
    return {
        task: {
            name: number(mean_attribute(accuracy, sums) if task == "attribute" else accuracy(as_confusion(sums[0])))
            for name, sums in zip(("as_answered", "consistent"), np.swapaxes(found, 0, 1))
        }
        | {"faces": len(faces)}
        for task, found in cells.items()
    }


def _majority_option(column: Predictions, train_answer: Answer) -> Int[Array, "f"]:
    """The majority's option for every face, −1 where nothing tells it."""
    faces = len(column.answer)
    if column.task == "age_years":
        known = ~np.isnan(column.years)
        median = np.nanmedian(column.years) if train_answer is None and known.any() else train_answer
        return _years_option(np.full(faces, np.nan if median is None else median, float))
    known = column.target >= 0
    return np.full(faces, majority_of(column, train_answer)[0] if known.any() or train_answer is not None else -1)


def _positive_rates(rules: Sequence[Rule], vocab: Vocabulary, answered, annotated) -> dict[str, dict]:
    """How often each label of the rules is true of a face, by the answers and by the annotations where known.

    A model that denies everything breaks no rule, so the violation rate means nothing without these.
    """
    found = {}
    for name in vocab.names:
        if any(name in (rule.premise, *rule.labels) for rule in rules):
            place = vocab.index(name)
            rates = [labels[scope[:, place], place] for labels, scope in (answered, annotated)]
            if len(rates[0]):
                shares = {k: number(r.mean() if len(r) else None) for k, r in zip(("answered", "annotated"), rates)}
                found[name] = shares | {"faces": len(rates[0])}
    return found


def rule_statistics(block: Block) -> Float[Array, "f 2"] | None:
    """Whether each face's answers break a rule, and whether any rule is about them; None where none is about any."""
    block = _judged_by_rules(block)
    rules = rules_of(block) if block.predictions else ()
    if not rules:
        return None
    answered = hard_labels(block, {name: predicted_options(c) for name, c in block.predictions.items()})
    stats = _rate_stats(*broken(*answered, compile_rules(rules, vocabulary_of(block))))
    return stats if stats[:, 1].any() else None


def _judged_by_rules(block: Block) -> Block:
    """Without questions of a table of one's own that predictions alone do not tell the labels of."""
    own = {question.name for question in block.vocabulary.questions} if block.vocabulary else set()
    return replace(
        block, predictions={name: one for name, one in block.predictions.items() if name in own or is_built_in(name)}
    )


def judge_rules(block: Block, baselines: Mapping[str, Answer], resamples: int, consistent: bool = True) -> dict | None:
    """Returns the violation rate with all that stands beside it, or None when no rule concerns these questions.

    The rate is the share of faces whose answers break at least one rule. Beside it: the same of the true labels
    where known (`annotations`), of the majority's answers (`baseline`), every rule's own rate, how often each label is
    answered (`positive_rates`), up to `MOST_EXAMPLES` faces with the rules they break, and what consistent decoding
    costs (`consistency_cost`).
    """
    block = _judged_by_rules(block)
    if not block.predictions:
        return None
    rules = rules_of(block)
    vocab = vocabulary_of(block)
    if not rules:
        return None
    table: RuleTable = compile_rules(rules, vocab)
    columns = block.predictions
    answered = hard_labels(block, {name: predicted_options(c) for name, c in columns.items()})
    breaks, mask = broken(*answered, table)
    judged = np.any(mask, axis=-1)
    if not judged.any():
        return None
    annotated = hard_labels(block, {name: true_options(c) for name, c in columns.items()})
    true_stats = _rate_stats(*broken(*annotated, table))
    majority = {name: _majority_option(c, baselines.get(name)) for name, c in columns.items()}
    constant = _rate_stats(*broken(*hard_labels(block, majority), table))
    stats = _rate_stats(breaks, mask)
    rate = np.divide(breaks.sum(0), mask.sum(0), out=np.zeros(len(rules)), where=mask.any(0))
    examples = [
        {"image": block.images[f], "rules": [str(rules[r]) for r in np.flatnonzero(breaks[f])]}
        for f in np.flatnonzero(breaks.any(-1))[:MOST_EXAMPLES]
    ]
    return {
        "headline": RATE.name,
        "metrics": scores(stats[judged], (RATE,), resamples, constant[judged]),
        "baseline": {"answer": "each question's majority", "from": "train" if baselines else "evaluated"},
        "annotations": number(RATE.of(true_stats.sum(0, dtype=np.float64))),
        "groups": breakdown(stats, judged, block.groups, RATE, resamples),
        "by_rule": {
            str(rule): {"kind": rule.kind, "why": rule.source, "rate": number(rate[r]), "faces": int(mask[:, r].sum())}
            for r, rule in enumerate(rules)
            if mask[:, r].any()
        },
        "positive_rates": _positive_rates(rules, vocab, answered, annotated),
        "examples": examples,
        "consistent": consistency_cost(block) if consistent else None,
        "faces": int(judged.sum()),
    }
