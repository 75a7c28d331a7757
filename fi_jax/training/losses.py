"""The terms of L on what the model says: token loss, L_bce and L_c on the LLM's answers, the same on the head.

Every term is a sum and the count it is divided by, so that micro-batches and hosts weigh by what was counted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fi_jax.config import LossConfig
from fi_jax.knowledge.logic import Chances, RuleTable, chances, logic_loss

TERMS = ("lm", "bce", "logic", "head_bce", "head_logic")


class Answers(NamedTuple):
    """What one forward pass says; None where the stage does not run that part."""

    scores: Float[Array, "b n"]
    option_logits: Float[Array, "b q k"] | None = None
    answer_logits: Float[Array, "b m v"] | None = None


def option_probabilities(logits: Float[Array, "b q k"]) -> Float[Array, "b q k"]:
    """Softmax over the options of each question: Bernoulli for yes/no, categorical for choices."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def label_probabilities(
    probabilities: Float[Array, "b q k"], batch: dict[str, Array], num_labels: int
) -> tuple[Float[Array, "b n"], Bool[Array, "b n"]]:
    """Scatters option probabilities to the labels they assert: ŷ, and which labels were asked about.

    A label that two questions assert ("Male" by its own and by "gender") gets the mean of both.
    """
    index, rows = _places(batch, num_labels)
    times = _times(batch, num_labels)
    zeros = jnp.zeros((index.shape[0], num_labels + 1))
    values = zeros.at[rows, index].add(probabilities.reshape(index.shape))[:, :num_labels]
    return values / jnp.maximum(times, 1.0), times > 0


def label_chances(
    logits: Float[Array, "b q k"], batch: dict[str, Array], num_labels: int
) -> tuple[Chances, Bool[Array, "b n"]]:
    """The same from option logits, as logarithms of ŷ and of 1 - ŷ that are exact wherever ŷ is."""
    index, rows = _places(batch, num_labels)
    times = _times(batch, num_labels)

    def mean(logs: Float[Array, "b q k"]) -> Float[Array, "b n"]:
        logs = logs.reshape(index.shape)
        most = jnp.full((index.shape[0], num_labels + 1), -jnp.inf).at[rows, index].max(jax.lax.stop_gradient(logs))
        shares = jnp.zeros_like(most).at[rows, index].add(jnp.exp(logs - most[rows, index]))[:, :num_labels]
        # Where nothing was asked, any finite number will do: it is out of scope.
        return jnp.where(times > 0, most[:, :num_labels] + jnp.log(jnp.where(times > 0, shares / times, 1.0)), 0.0)

    yes = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    # The likeliest option leaves what the others have; of the rest each is at most a half, and 1 - p is exact.
    likeliest = jax.nn.one_hot(jnp.argmax(yes, -1), yes.shape[-1], dtype=bool)
    left = jax.nn.logsumexp(jnp.where(likeliest, -jnp.inf, yes), axis=-1, keepdims=True)
    no = jnp.where(likeliest, left, jnp.log1p(-jnp.exp(jnp.where(likeliest, -1.0, yes))))
    return Chances(mean(yes), mean(no)), times > 0


def _places(batch: dict[str, Array], num_labels: int) -> tuple[Int[Array, "b qk"], Int[Array, "b 1"]]:
    """Which label each option asserts, and its face; index n is a bin for what asserts nothing, to be cut off."""
    at = batch["option_labels"]
    asserts = (at >= 0) & (batch["option_tokens"] >= 0)
    return jnp.where(asserts, at, num_labels).reshape(at.shape[0], -1), jnp.arange(at.shape[0])[:, None]


def _times(batch: dict[str, Array], num_labels: int) -> Float[Array, "b n"]:
    """How many questions assert each label."""
    index, rows = _places(batch, num_labels)
    return jnp.zeros((index.shape[0], num_labels + 1)).at[rows, index].add(1.0)[:, :num_labels]


def _closed(logits: Float[Array, "b q k"], batch: dict[str, Array]) -> tuple[Array, Array]:
    """L_bce: cross-entropy between target and said distribution of each question that has a known answer."""
    targets = batch["option_targets"]
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    known = (targets.sum(-1) > 0) * batch["weight"][:, None]
    loss = -jnp.sum(jnp.where(targets > 0, targets * log_probabilities, 0.0), axis=-1)
    return jnp.sum(loss * known), jnp.sum(known)


def _head(answers: Answers, batch: dict[str, Array]) -> tuple[Array, Array]:
    """L_bce on the alignment head: Bernoulli throughout, unknown labels masked."""
    known = batch["known"] * batch["weight"][:, None]
    y, s = batch["labels"], answers.scores.astype(jnp.float32)
    loss = jnp.maximum(s, 0) - s * y + jnp.log1p(jnp.exp(-jnp.abs(s)))
    return jnp.sum(loss * known), jnp.sum(known)


def _tokens(logits: Float[Array, "b m v"], batch: dict[str, Array]) -> tuple[Array, Array]:
    """L_lm: next-token cross-entropy of free-form answers."""
    weights = batch["lm_weights"] * batch["weight"][:, None]
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    loss = -jnp.take_along_axis(log_probabilities, batch["lm_targets"][..., None], axis=-1)[..., 0]
    return jnp.sum(loss * weights), jnp.sum(weights)


def loss_terms(
    answers: Answers,
    batch: dict[str, Array],
    rules: RuleTable,
    config: LossConfig,
) -> dict[str, tuple[Array, Array]]:
    """Returns `(sum, count)` of every term that has a weight and whose part ran.

    L_c on the LLM's answers is in scope where a label was asked about; on the head, for every label, but not for
    faces that were blended (`training.mixup`).
    """
    num_labels = batch["labels"].shape[1]
    real = batch["weight"][:, None] > 0
    terms: dict[str, tuple[Array, Array]] = {}
    if config.head_bce:
        terms["head_bce"] = _head(answers, batch)
    if config.head_logic:
        whole = batch["whole"][:, None] if "whole" in batch else True
        in_scope = jnp.broadcast_to(real & whole, answers.scores.shape)
        terms["head_logic"] = logic_loss(
            chances(answers.scores), in_scope, rules, config.logic_form, config.logic_alpha
        )
    if answers.option_logits is not None:
        if config.bce:
            terms["bce"] = _closed(answers.option_logits, batch)
        if config.logic:
            said, asked = label_chances(answers.option_logits, batch, num_labels)
            terms["logic"] = logic_loss(
                said, asked & real, rules, config.logic_form, config.logic_alpha, categorical=True
            )
    if config.lm and answers.answer_logits is not None and answers.answer_logits.shape[1]:
        terms["lm"] = _tokens(answers.answer_logits, batch)
    return terms


def painting_error(
    painted: Float[Array, "b i c"], targets: Float[Array, "b i c"], hidden: Bool[Array, "b i"]
) -> tuple[Array, Array]:
    """Sum and count over hidden patches of the mean squared error of their values."""
    return jnp.sum(jnp.mean((painted - targets) ** 2, axis=-1) * hidden), jnp.sum(hidden)


def total(terms: dict[str, tuple[Array, Array]], counts: dict[str, Array], config: LossConfig) -> Array:
    """Σ weight · sum / count, with the counts of the whole batch (all micro-batches, all hosts)."""
    return sum(
        (getattr(config, name) * value / jnp.maximum(counts[name], 1.0) for name, (value, _) in terms.items()),
        start=jnp.zeros(()),
    )
