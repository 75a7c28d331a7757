"""The terms of L on what the model says: token loss, L_bce and L_c on the LLM's answers, the same on the head.

Every term is a sum and the count it is divided by, so that micro-batches and hosts weigh by what was counted.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from fi_jax.config import LossConfig
from fi_jax.knowledge.choices import Groups, score_cross_entropy, score_log_probs
from fi_jax.knowledge.logic import Facts, RuleTable, logic_loss
from fi_jax.prompting.probabilities import label_log_probs


class Answers(NamedTuple):
    """What one forward pass says; None where the stage does not run that part."""

    scores: Float[Array, "b n"]
    # Before messages passed between the scores; None where they do not.
    own: Float[Array, "b n"] | None = None
    option_logits: Float[Array, "b q k"] | None = None
    answer_logits: Float[Array, "b m v"] | None = None


def _closed(logits: Float[Array, "b q k"], batch: dict[str, Array]) -> tuple[Array, Array]:
    """L_bce: cross-entropy between target and said distribution of each question that has a known answer."""
    targets = batch["option_targets"]
    known = (targets.sum(-1) > 0) * batch["weight"][:, None]
    loss = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    return jnp.sum(loss * known), jnp.sum(known)


def _tokens(logits: Float[Array, "b m v"], batch: dict[str, Array]) -> tuple[Array, Array]:
    """L_lm: next-token cross-entropy of free-form answers."""
    weights = batch["lm_weights"] * batch["weight"][:, None]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["lm_targets"])
    return jnp.sum(loss * weights), jnp.sum(weights)


def loss_terms(
    answers: Answers,
    batch: dict[str, Array],
    rules: RuleTable,
    config: LossConfig,
    groups: Groups | None = None,
) -> dict[str, tuple[Array, Array]]:
    """Returns `(sum, count)` of every term that has a weight and whose part ran.

    L_c on the LLM's answers is about the labels that were asked about; on the head, about every label, but not of
    faces that were blended (`training.mixup`). Both are anchored by what is annotated (`knowledge.logic.violations`).
    `groups`: the choices among the head's labels; None for a Bernoulli head. Where messages pass between scores, each
    score learns as if alone, and the graph from what the scores are: else a score would leave to its neighbours what
    they are told in training, and nobody tells them later.
    """
    num_labels = batch["labels"].shape[1]
    real = batch["weight"][:, None] > 0
    known = (batch["known"] > 0) & real
    anchored = config.logic_scope == "anchored"
    own = answers.scores if answers.own is None else answers.own
    terms: dict[str, tuple[Array, Array]] = {}
    if config.head_bce:
        weights = batch["known"] * batch["weight"][:, None]
        terms["head_bce"] = score_cross_entropy(own, batch["labels"], weights, groups)
        if answers.own is not None:
            passed = jax.lax.stop_gradient(own) + answers.scores - own
            value, count = terms["head_bce"]
            terms["head_bce"] = value + score_cross_entropy(passed, batch["labels"], weights, groups)[0], count
    if config.head_logic:
        whole = real & batch["whole"][:, None] if "whole" in batch else real
        terms["head_logic"] = logic_loss(
            score_log_probs(own, groups),
            jnp.broadcast_to(whole, own.shape),
            rules,
            Facts(batch["labels"], known & whole) if anchored else None,
            config.logic_form,
            config.logic_alpha,
            categorical=groups is not None,
        )
    if answers.option_logits is not None:
        if config.bce:
            terms["bce"] = _closed(answers.option_logits, batch)
        if config.logic:
            said, asked = label_log_probs(answers.option_logits, batch, num_labels)
            facts = Facts(batch["labels"], known) if anchored else None
            terms["logic"] = logic_loss(
                said, asked & real, rules, facts, config.logic_form, config.logic_alpha, categorical=True
            )
    if config.lm and answers.answer_logits is not None and answers.answer_logits.shape[1]:
        terms["lm"] = _tokens(answers.answer_logits, batch)
    return terms


def mae_loss(
    reconstructed: Float[Array, "b i c"], targets: Float[Array, "b i c"], hidden: Bool[Array, "b i"]
) -> tuple[Array, Array]:
    """Sum and count over hidden patches of the mean squared error of their values."""
    return jnp.sum(jnp.mean((reconstructed - targets) ** 2, axis=-1) * hidden), jnp.sum(hidden)


def total(terms: dict[str, tuple[Array, Array]], counts: dict[str, Array], weights: Mapping[str, Any]) -> Array:
    """Σ weight · sum / count, with the counts of the whole batch (all micro-batches, all hosts)."""
    return sum(
        (weights[name] * value / jnp.maximum(counts[name], 1.0) for name, (value, _) in terms.items()),
        start=jnp.zeros(()),
    )
