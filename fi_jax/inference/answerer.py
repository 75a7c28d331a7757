"""A trained model ready to answer: pictures and maps in, probabilities of closed answers or generated text out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tokenizers import Tokenizer

from fi_jax.config import Experiment
from fi_jax.errors import UserError
from fi_jax.faces.alignment import nearer
from fi_jax.faces.masks import flip
from fi_jax.inference.prepare import merged_while_read, prepare_for_inference, without_adapters
from fi_jax.inference.scoring import AskedBranch, ask_branch, option_logits
from fi_jax.knowledge.choices import Groups, head_groups, yes_no_logits
from fi_jax.knowledge.logic import Facts
from fi_jax.knowledge.score_graph import with_facts
from fi_jax.labels.facts import Statement, stated_labels
from fi_jax.labels.question_bank import answerable
from fi_jax.labels.questions import Question
from fi_jax.labels.schema import find_vocabulary
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.face_insight import Alignment, Constants, FaceInsight, Faces, label_probs
from fi_jax.models.pixels import encoder_pixels
from fi_jax.models.projections import GPU_OPTIONS
from fi_jax.parallel.rules import fetch
from fi_jax.prompting.branches import Branch, branches
from fi_jax.prompting.builders import slots_of
from fi_jax.prompting.probabilities import option_probabilities
from fi_jax.prompting.sequences import SequenceBuilder
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import assemble
from fi_jax.weights.bundle import TrainedModel
from fi_jax.weights.tokenizers import load_template, load_tokenizer

# The segment of a question that is asked alone is a multiple of so many tokens.
_ALONE = 16


class OptionProbabilities(NamedTuple):
    """Probabilities of closed answers about `b` faces, by the LLM and by the alignment head, in the questions' order.

    Options beyond a question's own have probability 0. `llm` is None when only the head was asked, `head` and
    `label_scores` (logits) of a model that has no head.
    """

    llm: Float[np.ndarray, "b q k"] | None
    head: Float[np.ndarray, "b q k"] | None
    label_scores: Float[np.ndarray, "b n"] | None

    def of(self, by_llm: bool) -> Float[np.ndarray, "b q k"]:
        """The LLM's probabilities, or the head's; a `ValueError` where that part was not asked."""
        probabilities = self.llm if by_llm else self.head
        if probabilities is None:
            raise ValueError(f"the {'LLM' if by_llm else 'head'} was not asked")
        return probabilities

    def with_others(
        self, own: Sequence[int], others: "OptionProbabilities", at: Sequence[int]
    ) -> "OptionProbabilities":
        """Puts these answers at places `own` of a list of questions, and `others` at places `at`."""

        def joined(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
            if first is None or second is None:
                return None
            width = max(first.shape[2], second.shape[2])
            made = np.zeros((len(first), len(own) + len(at), width), np.float32)
            made[:, own, : first.shape[2]], made[:, at, : second.shape[2]] = first, second
            return made

        return OptionProbabilities(joined(self.llm, others.llm), joined(self.head, others.head), self.label_scores)


class Answerer:
    """The model, its tokenizer and its compiled programs. Pictures are square crops `b y x 3` uint8, maps `b y x`."""

    def __init__(self, config: Experiment, params: dict, constants: Constants, tokenizer: Tokenizer, info: dict):
        """Prefer `load_answerer`."""
        self.config, self.params, self.constants, self.tokenizer, self.info = config, params, constants, tokenizer, info
        self.vocabulary: Vocabulary = find_vocabulary(config.data.vocabulary, config.data.schemas)
        self.model = FaceInsight(config.model)
        self._builders: dict[tuple[Question, ...], SequenceBuilder] = {}
        self._branches: dict[tuple[Question, ...], tuple[list[Branch], list[AskedBranch]]] = {}
        self._one_token: dict[Question, bool] = {}

    @property
    def is_instruction_tuned(self) -> bool:
        """Whether the LLM was taught to read faces (stage 2); after stage 1 alone only the alignment head answers."""
        return self.config.train.stage == "instruct"

    @property
    def has_head(self) -> bool:
        """Whether the alignment head was trained; that of a checkpoint from elsewhere was not."""
        return not self.info.get("untrained", False)

    @property
    def asks_in_prefix(self) -> bool:
        """Whether a question stands in the prefix and takes a pass of its own: picture and question see each other.

        So a prefix language model (PaliGemma) was trained; trained here, it learns to answer behind a shared prefix.
        """
        return self.config.model.llm.bidirectional_prefix and not self.has_head

    @cached_property
    def _faces(self):
        def run(params, constants, image, mask, facts):
            pixels, maps = encoder_pixels(image, mask, self.config.model)
            faces = self.model.apply({"params": params}, pixels, maps, method="encode")
            return faces, self.model.apply({"params": params}, faces, constants, facts, method="align")

        return jax.jit(run)

    @cached_property
    def _score(self):
        def run(params, faces, alignment, batch):
            def options(model):
                return model.answers(model.sequence(faces, alignment, batch), batch)[0]

            return self.model.apply({"params": params}, method=options)

        eight_bits = jax.default_backend() == "gpu" and self.config.model.frozen_precision != "bf16"
        return jax.jit(run, compiler_options=GPU_OPTIONS if eight_bits else None)

    @cached_property
    def _score_branches(self):
        # Generation alone keeps its prefix in 8 bits.
        model = FaceInsight(replace(self.config.model, kv_precision="bf16"))

        def run(params, faces, alignment, prefix, asked):
            return model.apply({"params": params}, faces, alignment, prefix, asked, method=option_logits)

        return jax.jit(run)

    def facts(self, known: Mapping[str, Statement] | None) -> Facts | None:
        """What is stated of one face (`labels.facts.stated_labels`), rules included."""
        if known is None:
            return None
        stated = stated_labels(known, self.vocabulary)
        labels, given = np.zeros((1, len(self.vocabulary)), np.float32), np.zeros((1, len(self.vocabulary)), bool)
        at = [self.vocabulary.index(name) for name in stated]
        labels[0, at], given[0, at] = list(stated.values()), True
        return Facts(jnp.asarray(labels), jnp.asarray(given))

    def faces(
        self, image: UInt8[np.ndarray, "b y x 3"], mask: UInt8[np.ndarray, "b y x"], facts: Facts | None = None
    ) -> tuple[Faces, Alignment]:
        """Encodes pictures and maps, and scores every label by the alignment head; `facts` are stated of each face.

        With `info["mirror"]` a label's score is the mean over picture and mirror image; it gates the knowledge tokens,
        so the LLM hears of it too. It costs one more pass of the encoders, none of the LLM.
        """
        faces, alignment = self._faces(self.params, self.constants, image, mask, facts)
        if self.info.get("mirror"):
            # The same program again: it is compiled once.
            _, other = self._faces(self.params, self.constants, image[:, :, ::-1], flip(np.asarray(mask)), facts)
            scores = (alignment.scores + other.scores) / 2
            probs = with_facts(label_probs(scores, self.constants.groups), facts)
            alignment = alignment._replace(scores=scores, probs=probs)
        return faces, alignment

    def builder(self, questions: Sequence[Question]) -> SequenceBuilder:
        """Sequences that ask `questions`; made once. A question alone is padded, so that others share its program."""
        key = tuple(questions)
        if key not in self._builders:
            template, slots = load_template(self.config, self.tokenizer), slots_of(self.config.model, self.vocabulary)
            make = partial(SequenceBuilder, self.tokenizer, template, self.vocabulary, key, slots)
            builder = make(num_segments=max(len(key), 1))
            if len(key) == 1:
                builder = make(num_segments=1, segment_length=-(-builder.segment_length // _ALONE) * _ALONE)
            self._builders[key] = builder
        return self._builders[key]

    def answer(
        self,
        image: UInt8[np.ndarray, "b y x 3"],
        mask: UInt8[np.ndarray, "b y x"],
        questions: Sequence[Question],
        *,
        by_llm: bool = True,
        facts: Facts | None = None,
    ) -> OptionProbabilities:
        """Answers closed questions by likelihood: all questions about each face together (`_option_logits`).

        Questions that `info["nearer"]` names, by their name or family, see the face brought nearer, as in the data set
        that taught them; they take a pass of their own. `label_scores` are of the faces as they are, unless all questions
        see them nearer.
        What `facts` state is answered as stated. Other answers follow: the head's scores hear of it where they hear
        each other (`knowledge.score_graph`), and the LLM reads it in the gates of its knowledge tokens.
        """
        if not by_llm and not self.has_head:
            raise UserError("this checkpoint was not trained here: it has no alignment head, the LLM alone answers")
        near = [i for i, question in enumerate(questions) if self._sees_nearer(question)]
        rest = [i for i in range(len(questions)) if i not in near]
        if not near:
            return self._answer(image, mask, questions, by_llm, facts)
        views = [self.view(*face, questions[near[0]]) for face in zip(np.asarray(image), np.asarray(mask), strict=True)]
        images, masks = map(np.stack, zip(*views, strict=True))
        found = self._answer(images, masks, [questions[i] for i in near], by_llm, facts)
        if not rest:
            return found
        return self._answer(image, mask, [questions[i] for i in rest], by_llm, facts).with_others(rest, found, near)

    def view(
        self, image: UInt8[np.ndarray, "y x 3"], mask: UInt8[np.ndarray, "y x"], question: Question
    ) -> tuple[UInt8[np.ndarray, "y x 3"], UInt8[np.ndarray, "y x"]]:
        """One face as a question sees it: its crop and map as they are, or brought nearer (`alignment.nearer`)."""
        return nearer(image, mask) if self._sees_nearer(question) else (image, mask)

    def _sees_nearer(self, question: Question) -> bool:
        return not {question.name, question.family}.isdisjoint(self.info.get("nearer", ()))

    def _answer(
        self, image: np.ndarray, mask: np.ndarray, questions: Sequence[Question], by_llm: bool, facts: Facts | None
    ) -> OptionProbabilities:
        """`answer`, all questions about the faces as they are."""
        faces, alignment = self.faces(image, mask, facts)
        scores = head = None
        if self.has_head:
            scores = np.asarray(fetch(alignment.scores), np.float32)
            _require_finite(scores)
            head = head_probabilities(scores, questions, self.vocabulary, self.constants.groups)
            head = self.calibrated(head, questions, "head_temperatures")
            head = self._as_stated(head, questions, facts)
        if not by_llm:
            return OptionProbabilities(None, head, scores)
        width = max(len(q.options) for q in questions)
        llm = np.zeros((len(image), len(questions), width), np.float32)
        behind = not self.asks_in_prefix
        short = [i for i, question in enumerate(questions) if behind and self._has_short_answers(question)]
        for i in set(range(len(questions))) - set(short):
            own = self._long_answers(faces, alignment, questions[i])
            llm[:, i, : own.shape[1]] = own
        for group, logits in self._option_logits(faces, alignment, questions, short):
            llm[:, group, : logits.shape[-1]] = option_probabilities(fetch(logits))
        _require_finite(llm)
        return OptionProbabilities(self._as_stated(self.calibrated(llm, questions), questions, facts), head, scores)

    def _as_stated(
        self, probabilities: Float[np.ndarray, "b q k"], questions: Sequence[Question], facts: Facts | None
    ) -> Float[np.ndarray, "b q k"]:
        """Options that facts rule out have no chance, and those that hold all of it; shares stand as they are stated."""
        if facts is None:
            return probabilities
        probabilities = probabilities.copy()
        all_known, all_labels = np.asarray(facts.known), np.asarray(facts.labels)
        for face, (row, question) in product(range(len(probabilities)), enumerate(questions)):
            at = [self.vocabulary.index(label) for label in question.labels if label]
            known, labels = all_known[face, at], all_labels[face, at]
            if question.is_binary:
                known, labels = known.repeat(2), np.array([labels[0], 1 - labels[0]])
            own = probabilities[face, row, : len(labels)]
            if known.all() or labels[known].any():
                own[:] = np.where(known, labels, 0) / labels[known].sum()
            elif known.any():
                left = (own + 1e-12) * ~known
                own[:] = left / left.sum()
        return probabilities

    def calibrated(
        self, probabilities: np.ndarray, questions: Sequence[Question], fitted: str = "temperatures"
    ) -> np.ndarray:
        """Sharpens or softens by the temperature that validation gave each task family (`info[fitted]`)."""
        temperatures = self.info.get(fitted, {})
        t = np.array([temperatures.get(q.family, 1.0) for q in questions], np.float32)[None, :, None]
        powered = np.where(probabilities > 0, np.maximum(probabilities, 1e-30) ** (1 / t), 0.0)
        return powered / powered.sum(-1, keepdims=True)

    def _has_short_answers(self, question: Question) -> bool:
        """Whether each option is one token, as with nearly every tokenizer."""
        if question not in self._one_token:
            ids = self.builder(()).answer_ids
            self._one_token[question] = all(len(ids(answer)) == 1 for answer in question.answers)
        return self._one_token[question]

    @cached_property
    def _likelihood(self):
        def run(params, faces, alignment, batch):
            def at_answers(model):
                return model.answers(model.sequence(faces, alignment, batch), batch)[1]

            logits = self.model.apply({"params": params}, method=at_answers)
            of_tokens = jax.nn.log_softmax(logits.astype(jnp.float32))
            return jnp.take_along_axis(of_tokens, batch["lm_targets"][..., None], -1)[..., 0]

        return jax.jit(run)

    def _long_answers(self, faces: Faces, alignment: Alignment, question: Question) -> Float[np.ndarray, "b k"]:
        """Probabilities of options of several tokens: the softmax of each one's likelihood, a segment an option."""
        spell = self.builder(())
        asked, answers = spell.question_ids(question.text), [spell.answer_ids(answer) for answer in question.answers]
        in_prefix, asked = (asked, []) if self.asks_in_prefix else ([], asked)
        lengths = [len(ids) for ids in answers]
        builder = SequenceBuilder(
            *(self.tokenizer, spell.template, self.vocabulary, (), slots_of(self.config.model, self.vocabulary)),
            num_segments=len(answers),
            segment_length=len(asked) + max(lengths),
            lm_length=sum(lengths),
        )
        builder.prefix = np.append(builder.prefix, np.array(in_prefix, np.int32))
        rows = builder.build([[]], open_questions=[[(asked, ids) for ids in answers]])
        b = len(faces.image_pooled)
        batch = {key: np.broadcast_to(value, (b, *value.shape[1:])) for key, value in cast(dict, rows).items()}
        of_tokens = fetch(self._likelihood(self.params, faces, alignment, batch))
        scores = np.stack([part.sum(1) for part in np.split(of_tokens, np.cumsum(lengths)[:-1], axis=1)], 1)
        return np.asarray(option_probabilities(jnp.asarray(scores[:, None])))[:, 0]

    def _option_logits(
        self, faces: Faces, alignment: Alignment, questions: Sequence[Question], which: Sequence[int]
    ) -> Iterator[tuple[list[int], Float[Array, "b q k"]]]:
        """Yields questions of `which` and the logits of their options, until all were asked.

        On a CPU in branches: the prefix is run once for all. Elsewhere, as `plan` counts it, as one sequence: branches keep
        copies of the keys and values of the prefix, and unrolled layers would be compiled once a branch.
        """
        if self.config.model.attention == "flash" or jax.default_backend() != "cpu":
            for group in self._by_length(questions, which):
                rows = cast(
                    dict[str, np.ndarray], self.builder([questions[i] for i in group]).build([range(len(group))])
                )
                b = len(faces.image_pooled)
                batch = {key: np.broadcast_to(value, (b, *value.shape[1:])) for key, value in rows.items()}
                yield group, self._score(self.params, faces, alignment, batch)
        elif which:
            groups, asked = self._branched(tuple(questions[i] for i in which))
            found = self._score_branches(self.params, faces, alignment, self.builder(()).prefix, asked)
            for branch, logits in zip(groups, found, strict=True):
                yield [which[i] for i in branch.which], logits

    def _by_length(self, questions: Sequence[Question], which: Sequence[int]) -> list[list[int]]:
        lengths = {i: len(self.tokenizer.encode(questions[i].text, add_special_tokens=False).ids) for i in which}
        short = [i for i, n in lengths.items() if n <= 16]
        long = [i for i, n in lengths.items() if n > 16]
        return [group for group in (short, long) if group]

    def _branched(self, questions: tuple[Question, ...]) -> tuple[list[Branch], list[AskedBranch]]:
        """Questions in branches; made once. A question alone is padded, so that others share its program."""
        if questions not in self._branches:
            spell = self.builder(())
            segments = [spell.question_ids(question.text) for question in questions]
            options = [[spell.answer_ids(answer)[0] for answer in question.answers] for question in questions]
            found = branches(segments)
            asked = [
                ask_branch(
                    [segments[i] for i in branch.which],
                    len(branch.opening),
                    [options[i] for i in branch.which],
                    _ALONE if len(questions) == 1 else 1,
                )
                for branch in found
            ]
            self._branches[questions] = found, asked
        return self._branches[questions]

    def answerable(self, questions: Sequence[Question]) -> list[Question]:
        """Those of the questions whose labels the model's vocabulary has."""
        return answerable(questions, self.vocabulary)


def _require_finite(numbers: Float[np.ndarray, "..."]) -> None:
    if not np.isfinite(numbers).all():
        raise UserError(
            "the model's answers are not finite numbers: its weights are damaged, diverged in training, or overflow in "
            "the type it computes in"
        )


def head_probabilities(
    scores: Float[np.ndarray, "b n"],
    questions: Sequence[Question],
    vocabulary: Vocabulary,
    groups: Groups | None = None,
) -> Float[np.ndarray, "b q k"]:
    """Option probabilities of closed questions by the alignment head's logits of every label.

    Yes/no: σ(s), or of an option of the head's choices (`groups`) its share. A choice: softmax of its options' scores;
    of a Bernoulli head, that is what independent labels say given that exactly one holds. Options beyond a question's
    own have probability 0.
    """
    alone = np.asarray(yes_no_logits(jnp.asarray(scores), groups))
    head = np.zeros((len(scores), len(questions), max(len(q.options) for q in questions)), np.float32)
    for at, question in enumerate(questions):
        columns = [vocabulary.index(label) for label in question.labels if label is not None]
        logits = scores[:, columns]
        if question.is_binary:
            logits = np.concatenate([alone[:, columns], np.zeros_like(logits)], 1)
        p = np.exp(logits - logits.max(1, keepdims=True))
        head[:, at, : logits.shape[1]] = p / p.sum(1, keepdims=True)
    return head


def load_answerer(model: TrainedModel, *, merge: bool = True) -> Answerer:
    """Assembles a trained model on the default device, its base LLM included, in the config's compute dtype.

    On a GPU in bfloat16 the LLM's layers are unrolled. There, in float32 and where the config's frozen kernels are in 8
    bits, adapters are merged into their kernels, before those are rounded. `merge` false leaves the parameters as they
    were trained, stacks and adapters, everywhere.
    """
    if model.config.train.stage == "pretrain":
        raise UserError(
            "the model was only pre-trained (train.stage pretrain) and answers nothing; train it with stage align"
        )
    config = replace(model.config, train=replace(model.config.train, frozen_dtype=model.config.model.dtype))
    accelerated = jax.default_backend() == "gpu" and config.model.dtype == "bfloat16"
    # How the machine that trained the model ran it is no part of the model.
    attention = config.model.attention if accelerated else "xla"
    config = replace(config, model=replace(config.model, attention=attention, scan_layers=not (accelerated and merge)))
    eight_bits = config.model.frozen_precision != "bf16"
    # An adapter that is read beside the checkpoint is merged afterwards.
    streamed = merge and eight_bits and not config.weights.adapter
    leaves, base = assemble(
        config, model.leaves, store=merged_while_read(config.model, model.leaves) if streamed else None
    )
    check_base(model, base)
    leaves = {path: jax.tree.map(jnp.asarray, leaves.pop(path)) for path in list(leaves)}
    if merge and (accelerated or eight_bits or config.model.dtype == "float32"):
        leaves = prepare_for_inference(leaves, config.model)
        config = replace(config, model=without_adapters(config.model))
    params = unflatten(leaves)
    groups = head_groups(config.model.knowledge, find_vocabulary(config.data.vocabulary, config.data.schemas))
    constants = Constants(jnp.asarray(model.prompts), jnp.asarray(model.graph), groups, model.relations)
    return Answerer(config, params, constants, load_tokenizer(config.weights), model.info)


def check_base(model: TrainedModel, base: dict) -> None:
    """Raises `UserError` when adapters would sit on another base than the one they were trained on."""
    for part, trained_on in model.info.get("base", {}).items():
        here = base.get(part, {})
        if here.get("hash") != trained_on.get("hash"):
            raise UserError(
                f"the model's {part} adapters were trained on {trained_on.get('name')} with hash "
                f"{str(trained_on.get('hash'))[:12]}…, but {here.get('name')} here has {str(here.get('hash'))[:12]}…; "
                "install the same base"
            )
