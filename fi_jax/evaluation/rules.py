"""How often answers break the declared rules of `labels.rule_tables`, and what answering consistently costs."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from fi_jax.errors import UserError
from fi_jax.evaluation.columns import Answers, Block
from fi_jax.evaluation.metrics import accuracy, as_confusion, confusion_cells, mean_attribute, mean_error
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.choice import majority_of
from fi_jax.evaluation.protocols.scoring import Metric, Options, breakdown, number, scores
from fi_jax.knowledge.consistency import decode_consistent
from fi_jax.knowledge.logic import RuleTable, broken, compile_rules
from fi_jax.labels.question_bank import question
from fi_jax.labels.registry import VOCABULARY_NAMES, vocabulary
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.rules import Rule
from fi_jax.labels.tasks import YEAR_CENTRES
from fi_jax.labels.vocabulary import Vocabulary

Array = np.ndarray
RATE = Metric("violation_rate", mean_error, higher_is_better=False)
MOST_EXAMPLES = 100
# Every face whose answers break a rule is an integer program of some milliseconds: beyond this many faces, an even
# sample of them is decoded.
MOST_DECODED = 2000


def asserted_labels(block: Block) -> set[str]:
    """Every label that an option of one of the block's questions asserts."""
    return {label for name in block.answers for label in question(name).labels if label}


def vocabulary_of(block: Block) -> Vocabulary:
    """The smallest vocabulary that has every label the block's questions are about: the data set's own, if it fits."""
    needed = asserted_labels(block)
    fitting = [v for v in map(vocabulary, VOCABULARY_NAMES) if needed <= set(v.names)]
    own = [v for v in fitting if v.name == block.dataset]
    if not fitting:
        raise UserError(f"no vocabulary has all labels that were asked about '{block.dataset}'")
    return min(own or fitting, key=len)


def rules_of(block: Block) -> tuple[Rule, ...]:
    """The rules that answers can break: not those between the options of one question, which is answered once."""
    alone = [{label for label in question(name).labels if label} for name in block.answers]
    asked = asserted_labels(block)

    def can_break(rule: Rule) -> bool:
        named = {*rule.labels, *([rule.premise] if rule.premise else [])} & asked
        return not any(named <= labels for labels in alone)

    return tuple(rule for rule in rules_for(vocabulary_of(block)) if can_break(rule))


def _years_option(answers: Answers, years: Float[Array, "f"]) -> Array:
    """The five-year bin of an age, −1 where unknown."""
    bins = np.abs(np.nan_to_num(years)[:, None] - np.asarray(YEAR_CENTRES)).argmin(-1)
    return np.where(np.isnan(years), -1, bins)


def said_options(answers: Answers) -> Array:
    """The option each face got: the answer's, or for ages the likeliest bin (the answer's bin without any)."""
    if answers.task != "age_years":
        return answers.answer
    likeliest = np.nan_to_num(answers.probs, nan=-1).argmax(-1)
    return np.where(np.isnan(answers.probs).any(-1), _years_option(answers, answers.said_years), likeliest)


def hard_labels(
    block: Block, vocab: Vocabulary, options: Mapping[str, Array]
) -> tuple[Bool[Array, "f n"], Bool[Array, "f n"]]:
    """Returns `(labels, in_scope)` over `vocab`, given the option (−1: none) of each question on each face.

    A label that several questions assert ("Male" by its own question and by "gender") follows the choice.
    """
    hard = np.zeros((len(block.images), len(vocab)), bool)
    scope = np.zeros_like(hard)
    for name in sorted(options, key=lambda n: not question(n).is_binary):
        chosen = options[name]
        answered = chosen >= 0
        for i, label in enumerate(question(name).labels):
            if label:
                place = vocab.index(label)
                hard[:, place] = np.where(answered, chosen == i, hard[:, place])
                scope[:, place] |= answered
    return hard, scope


def _rate_stats(breaks: Bool[Array, "f r"], mask: Bool[Array, "f r"]) -> Float[Array, "f 2"]:
    judged = mask.any(-1)
    return np.stack([breaks.any(-1) & judged, judged], -1).astype(np.float32)


def _label_probs(block: Block, vocab: Vocabulary, faces: Array) -> tuple[Float[Array, "f n"], Bool[Array, "f n"]]:
    """Returns the probability of every label an option asserts, and where there is one."""
    probs = np.zeros((len(faces), len(vocab)))
    scope = np.zeros((len(faces), len(vocab)), bool)
    for name in sorted(block.answers, key=lambda n: not question(n).is_binary):
        said = block.answers[name].probs[faces]
        given = ~np.isnan(said).any(-1)
        for i, label in enumerate(question(name).labels):
            if label:
                place = vocab.index(label)
                probs[given, place] = said[given, i]
                scope[:, place] |= given
    return probs, scope


def consistent_options(block: Block, faces: Int[Array, "f"]) -> dict[str, Int[Array, "f"]]:
    """Decodes some faces as the likeliest answers that break no rule: the option of each question, −1 without any."""
    vocab = vocabulary_of(block)
    probs, scope = _label_probs(block, vocab, faces)
    hard = decode_consistent(probs, scope, compile_rules(rules_for(vocab), vocab))
    found = {}
    for name, answers in block.answers.items():
        places = [vocab.index(label) for label in question(name).labels if label]
        given = scope[:, places].all(-1)
        if question(name).is_binary:
            chosen = np.where(hard[:, places[0]], 0, 1)
        else:
            # Where a data set's classes are a part of a larger group, none may be left: the likeliest stands.
            chosen = np.where(hard[:, places].any(-1), hard[:, places].argmax(-1), said_options(answers)[faces])
        found[name] = np.where(given, chosen, -1)
    return found


def consistency_cost(block: Block) -> dict[str, dict] | None:
    """Returns accuracy as answered and decoded consistently, a task; None where no answer has probabilities.

    After consistent decoding no rule is broken by construction, so its price in accuracy is what it is judged by.
    """
    judged = np.flatnonzero(np.any([~np.isnan(a.probs).any(-1) for a in block.answers.values()], axis=0))
    if not len(judged):
        return None
    faces = judged[np.linspace(0, len(judged) - 1, min(MOST_DECODED, len(judged))).astype(int)]
    decoded = consistent_options(block, faces)
    cells: dict[str, list] = {}
    for name, answers in block.answers.items():
        k = len(answers.options)
        target = _years_option(answers, answers.years) if answers.task == "age_years" else answers.target
        target = np.where(decoded[name] >= 0, target[faces], -1)
        if (target >= 0).any():
            both = (said_options(answers)[faces], decoded[name])
            cells.setdefault(answers.task, []).append([confusion_cells(target, said, k).sum(0) for said in both])
    return {
        task: {
            name: number(mean_attribute(accuracy, sums) if task == "attribute" else accuracy(as_confusion(sums[0])))
            for name, sums in zip(("as_answered", "consistent"), np.swapaxes(found, 0, 1))
        }
        | {"faces": len(faces)}
        for task, found in cells.items()
    }


def judge_rules(
    block: Block, baselines: Mapping[str, Answer], options: Options, consistent: bool = True
) -> dict | None:
    """Returns the violation rate with all that stands beside it, or None when no rule concerns these questions.

    The rate is the share of faces whose answers break at least one rule. Beside it: the same of the true labels
    where known (`annotations`), of the majority's answers (`baseline`), every rule's own rate, up to
    `MOST_EXAMPLES` faces with the rules they break, and what consistent decoding costs (`consistency_cost`).
    """
    rules = rules_of(block)
    vocab = vocabulary_of(block)
    if not rules:
        return None
    table: RuleTable = compile_rules(rules, vocab)
    asked = block.answers.values()
    breaks, mask = broken(*hard_labels(block, vocab, {a.question: said_options(a) for a in asked}), table)
    judged = np.any(mask, axis=-1)
    if not judged.any():
        return None

    truths = {a.question: _years_option(a, a.years) if a.task == "age_years" else a.target for a in asked}
    true_stats = _rate_stats(*broken(*hard_labels(block, vocab, truths), table))

    majority = {}
    for a in asked:
        if a.task == "age_years":
            stated = baselines.get(a.question)
            years = np.nanmedian(a.years) if stated is None and not np.isnan(a.years).all() else stated
            chosen = -1 if years is None else int(_years_option(a, np.array([years], float))[0])
        elif (a.target >= 0).any() or baselines.get(a.question) is not None:
            chosen, _ = majority_of(a, baselines.get(a.question))
        else:
            chosen = -1
        majority[a.question] = np.full(len(block.images), chosen)
    constant = _rate_stats(*broken(*hard_labels(block, vocab, majority), table))

    stats = _rate_stats(breaks, mask)
    rate = np.divide(breaks.sum(0), mask.sum(0), out=np.zeros(len(rules)), where=mask.any(0))
    examples = [
        {"image": block.images[f], "rules": [str(rules[r]) for r in np.flatnonzero(breaks[f])]}
        for f in np.flatnonzero(breaks.any(-1))[:MOST_EXAMPLES]
    ]
    return {
        "headline": RATE.name,
        "metrics": scores(stats[judged], (RATE,), options, constant[judged]),
        "baseline": {"answer": "each question's majority", "from": "train" if baselines else "evaluated"},
        "annotations": number(RATE.of(true_stats.sum(0, dtype=np.float64))),
        "groups": breakdown(stats, judged, block.groups, RATE, options),
        "by_rule": {
            str(rule): {"kind": rule.kind, "why": rule.source, "rate": number(rate[r]), "faces": int(mask[:, r].sum())}
            for r, rule in enumerate(rules)
            if mask[:, r].any()
        },
        "examples": examples,
        "consistent": consistency_cost(block) if consistent else None,
        "faces": int(judged.sum()),
    }
