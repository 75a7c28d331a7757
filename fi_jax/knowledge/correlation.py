"""From label co-occurrence to the re-weighted graph Ĉ: counts, P, C and Ĉ (paper: the CCM's correlation matrix).

The paper gives p_ij = m_ij / n_i, a threshold τ and a re-weighting ω; masks, ω's formula and the two ablation
graphs are ours (ω after ML-GCN and SCPNet). Row i is always the condition: p_ij = P(j | i). Two traps of the
released ML-GCN code are avoided: the diagonal is zero before the threshold, and nothing is transposed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fi_jax.config import KnowledgeConfig
from fi_jax.labels.bridges import bridges_for
from fi_jax.labels.vocabulary import Vocabulary

# Fewest joint sightings of two labels that the lift graph trusts: lift of rare pairs is mostly noise.
MIN_SUPPORT = 20
# Many enough for their shares to be exact.
_BRIDGED = 1_000_000


class Counts(NamedTuple):
    """Sufficient statistics of the graph; they add up over batches and hosts."""

    # m_ij: faces where i and j are both known and true.
    m: Int[np.ndarray, "n n"]
    # n_ij: faces where i is known and true, and j is known.
    n: Int[np.ndarray, "n n"]
    # k_ij: faces where i and j are both known.
    k: Int[np.ndarray, "n n"]


def empty(num_labels: int) -> Counts:
    """Returns the counts of no faces."""
    return Counts(*(np.zeros((num_labels, num_labels), np.int64) for _ in range(3)))


def update(
    counts: Counts, labels: Float[np.ndarray, "b n"] | Bool[np.ndarray, "b n"], known: Bool[np.ndarray, "b n"]
) -> Counts:
    """Returns `counts` with a batch of faces added; a soft label counts as true from 0.5 on.

    Only faces of the training split may be passed: the graph must not see a face that is evaluated.
    """
    if labels.shape != known.shape or labels.shape[1:] != counts.m.shape[1:]:
        raise ValueError(f"labels {labels.shape}, known {known.shape} and counts {counts.m.shape} do not fit together")
    # float64 matrix products use BLAS and are exact up to 2^53 faces.
    seen = np.asarray(known, np.float64)
    true = seen * (np.asarray(labels) >= 0.5)
    pieces = (true.T @ true, true.T @ seen, seen.T @ seen)
    return Counts(*(total + np.rint(piece).astype(np.int64) for total, piece in zip(counts, pieces, strict=True)))


def with_bridges(counts: Counts, vocabulary: Vocabulary) -> Counts:
    """Returns `counts` with pairs that no face is annotated with both of, where a bridge tells how they meet (ours).

    Such a pair gets the table of `_BRIDGED` faces in which each label is as frequent as its own set has it, and the
    chance is the bridge's. Merge the counts of all sets and hosts before.
    """
    m, n, k = (part.copy() for part in counts)
    often = prior(counts)
    for bridge in bridges_for(vocabulary):
        i, j = vocabulary.index(bridge.given), vocabulary.index(bridge.label)
        if counts.k[i, j] or not (counts.k[i, i] and counts.k[j, j]):
            continue
        both = min(often[i] * bridge.chance, often[j])
        m[i, j] = m[j, i] = round(_BRIDGED * both)
        n[i, j], n[j, i] = round(_BRIDGED * often[i]), round(_BRIDGED * often[j])
        k[i, j] = k[j, i] = _BRIDGED
    return Counts(m, n, k)


def merge(a: Counts, b: Counts) -> Counts:
    """Returns the counts of both parts together (batches, shards, hosts)."""
    return Counts(*(x + y for x, y in zip(a, b, strict=True)))


def conditional(counts: Counts) -> Float[np.ndarray, "n n"]:
    """Returns p_ij = m_ij / n_ij = P(j | i); zero where no face with i true has j known."""
    return np.divide(counts.m, counts.n, out=np.zeros(counts.m.shape), where=counts.n > 0)


def adjacency(p: Float[np.ndarray, "n n"], tau: float) -> Float[np.ndarray, "n n"]:
    """Returns C: c_ij = 1 where p_ij >= tau and i != j.

    A p of zero never makes an edge, not even at tau = 0: it may stand for labels that no data set annotates together.
    """
    edges = (p >= tau) & (p > 0) & ~np.eye(len(p), dtype=bool)
    return edges.astype(p.dtype)


def reweight(c: Float[np.ndarray, "n n"], omega: float) -> Float[np.ndarray, "n n"]:
    """Returns Ĉ: weight omega shared evenly by a label's neighbours, 1 - omega kept by itself.

    A row without neighbours keeps everything; every row sums to 1.
    """
    degree = c.sum(axis=1, keepdims=True)
    shared = omega * c / np.maximum(degree, 1)
    return shared + np.eye(len(c), dtype=c.dtype) * np.where(degree > 0, 1 - omega, 1.0)


def lift(counts: Counts) -> Float[np.ndarray, "n n"]:
    """Returns P(j | i) / P(j), both over the faces where i and j are known; zero where undefined."""
    base = np.divide(counts.n.T, counts.k, out=np.zeros(counts.m.shape), where=counts.k > 0)
    return np.divide(conditional(counts), base, out=np.zeros(counts.m.shape), where=base > 0)


def log_lift(counts: Counts) -> Float[np.ndarray, "n n"]:
    """Returns the logarithm of P(j | i) / P(j), which is that of P(i | j) / P(i): sightings against those expected.

    `MIN_SUPPORT` sightings are added to both, so that a rare pair says little, and one that no set annotates nothing.
    """
    expected = np.divide(counts.n * counts.n.T, counts.k, out=np.zeros(counts.m.shape), where=counts.k > 0)
    logs = np.log((counts.m + MIN_SUPPORT) / (expected + MIN_SUPPORT))
    return logs * ~np.eye(len(logs), dtype=bool)


def prior(counts: Counts) -> Float[np.ndarray, "n"]:
    """Returns how often each label holds where it is known; one half where it never is."""
    known = counts.k.diagonal()
    return np.divide(counts.m.diagonal(), known, out=np.full(len(known), 0.5), where=known > 0)


def shuffled_lift(logs: Float[np.ndarray, "n n"], seed: int) -> Float[np.ndarray, "n n"]:
    """Returns `logs` with its labels' columns in another order, for ablation: as many edges, as strong, of other labels."""
    order = np.random.default_rng(seed).permutation(len(logs))
    return logs[:, order] * ~np.eye(len(logs), dtype=bool)


def lift_adjacency(counts: Counts, tau: float) -> Float[np.ndarray, "n n"]:
    """Returns a C with at most as many edges as the co-occurrence graph at `tau`: the pairs of highest lift.

    The ablation against hubs (ours): a common label follows from almost any other, which P(j | i) rewards and
    lift does not. Pairs need lift above 1 and at least `MIN_SUPPORT` joint sightings; ties go by label order.
    """
    num_edges = int(adjacency(conditional(counts), tau).sum())
    score = np.where(counts.m >= MIN_SUPPORT, lift(counts), 0.0)
    np.fill_diagonal(score, 0.0)
    order = np.argsort(-score, axis=None, kind="stable")[:num_edges]
    c = np.zeros(score.shape)
    c.flat[order[score.flat[order] > 1]] = 1.0
    return c


def shuffled_adjacency(c: Float[np.ndarray, "n n"], seed: int) -> Float[np.ndarray, "n n"]:
    """Returns a random graph with the in- and out-degrees of `c` (double edge swaps), for ablation.

    Deterministic in `seed`. The diagonal stays zero and no edge stands twice.
    """
    rng = np.random.default_rng(seed)
    shuffled = np.array(c, copy=True)
    edges = np.argwhere(shuffled > 0)
    if len(edges) < 2:
        return shuffled
    for first, second in rng.integers(0, len(edges), (20 * len(edges), 2)):
        (a, b), (x, y) = edges[first], edges[second]
        # a→b, x→y become a→y, x→b unless that makes a loop or doubles an edge (equal ends do too).
        if a == y or x == b or shuffled[a, y] or shuffled[x, b]:
            continue
        shuffled[a, b] = shuffled[x, y] = 0.0
        shuffled[a, y] = shuffled[x, b] = 1.0
        edges[first], edges[second] = (a, y), (x, b)
    return shuffled


def build_adjacency(counts: Counts, config: KnowledgeConfig, seed: int = 0) -> Float[np.ndarray, "n n"]:
    """Returns C of the kind `config.graph`; `seed` matters to the shuffled graph alone."""
    if config.graph == "lift":
        return lift_adjacency(counts, config.tau)
    c = adjacency(conditional(counts), config.tau)
    return shuffled_adjacency(c, seed) if config.graph == "shuffled" else c


def build_graph(counts: Counts, config: KnowledgeConfig, seed: int = 0) -> Float[np.ndarray, "n n"]:
    """Returns Ĉ in float32, as the model takes it."""
    return reweight(build_adjacency(counts, config, seed), config.omega).astype(np.float32)


def extended_graph(
    graph: Float[np.ndarray, "m m"],
    labels: Sequence[str],
    counted: Float[np.ndarray, "n n"],
    new_labels: Sequence[str],
    kept: Sequence[str],
) -> Float[np.ndarray, "n n"]:
    """Ĉ of a vocabulary that shares labels with another, whose Ĉ is `graph` (ours).

    The labels `kept` keep their rows, so that what their prompts learn from is unchanged; edges to labels that are gone
    are left out and the row sums to 1 again. The others have the rows of `counted`.
    """
    shared, old = shared_places(labels, new_labels)
    rows = np.zeros((len(new_labels), len(new_labels)), np.float32)
    rows[np.ix_(shared, shared)] = graph[np.ix_(old, old)]
    keeps = np.isin(new_labels, list(kept))
    return normalised(np.where(keeps[:, None], rows, counted))


def shared_places(labels: Sequence[str], new_labels: Sequence[str]) -> tuple[list[int], list[int]]:
    """Where the labels that both lists have stand: in `new_labels`, and in `labels`."""
    places = {name: at for at, name in enumerate(labels)}
    shared = [at for at, name in enumerate(new_labels) if name in places]
    return shared, [places[new_labels[at]] for at in shared]


def normalised(graph: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """`graph` with rows that sum to 1, which those of a model saved in half precision do not quite.

    Rows that do, to float32's rounding, stay as they are bit for bit.
    """
    graph = np.asarray(graph, np.float32)
    sums = graph.sum(1, keepdims=True)
    return np.where(np.abs(sums - 1) < 1e-6, graph, graph / sums)
