"""How a conversation about a face is spelled for each family of language models."""

from dataclasses import dataclass

from fi_jax.errors import require_choice


@dataclass(frozen=True)
class Template:
    """Text around the shared prefix and around each question.

    The prefix is `opening`, image slots, `between`, segmentation slots, `between`, knowledge slots, `closing` (where a
    model has no map or no knowledge tokens, their slots and `between` are left out); a segment is `before` + question +
    `after` + answer + `end`. A checkpoint's own template becomes one in `prompting.chat_template`.
    """

    opening: str
    between: str
    closing: str
    before: str
    after: str
    end: str
    # Parts of it that must be tokens of their own: without them the tokenizer spells them out in letters.
    markers: tuple[str, ...] = ()
    # What stands before an answer inside its token ("▁Yes"): a space where the tokenizer marks word starts.
    answer_prefix: str = ""
    # The token that a segment follows in the model's own format (of the picture): text behind it may be cut into other
    # tokens than alone.
    anchor: str = ""
    # Before `opening` stands what the tokenizer itself opens a text with. (Spelled in `opening`, the text behind it would not
    # be cut as the start of a text.)
    opened_by_tokenizer: bool = False


TEMPLATES = {
    # SmolLM2's and other ChatML models' own format, with a system line that states the task.
    "chatml": Template(
        opening="<|im_start|>system\nYou look at one face and answer questions about it.<|im_end|>\n<|im_start|>user\n",
        between="\n",
        closing="\n",
        before="",
        after="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        markers=("<|im_start|>", "<|im_end|>"),
    ),
    # LLaVA-1.5's Vicuna format.
    "vicuna": Template(
        opening="<s>USER: ",
        between="\n",
        closing="\n",
        before="",
        after=" ASSISTANT:",
        end="</s>",
        markers=("<s>", "</s>"),
        answer_prefix=" ",
    ),
    # Plain text, for tiny models and base models without a chat format.
    "plain": Template(opening="", between="\n", closing="\n", before="Q: ", after="\nA:", end="\n", answer_prefix=" "),
}


def template(name: str) -> Template:
    """Returns a template by name; an unknown one is a `UserError`."""
    require_choice("chat template", name, TEMPLATES)
    return TEMPLATES[name]
