"""A checkpoint's own chat template (Jinja, as transformers keeps it) -> our `Template`."""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from tokenizers import Tokenizer

from fi_jax.errors import UserError
from fi_jax.prompting.templates import Template

# Stand for the question and the answer while a template is read.
_QUESTION, _ANSWER = "[[the question]]", "[[the answer]]"


def render(source: str, messages: list[dict[str, Any]], special: Mapping[str, str], *, prompt: bool) -> str:
    """Renders a chat template as transformers' `apply_chat_template` does.

    No date is given: templates that write today's have one of their own for that, so that prompts stay the same.

    Args:
      special: `bos_token`, `eos_token` and the like.
      prompt: end where the model's turn begins (`add_generation_prompt`).

    Raises:
      UserError: the template is damaged, or refuses these messages.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UserError("reading a chat template needs jinja2; pip install 'fi_jax[report]'") from None

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    # Marks what a trainer learns from; it writes nothing.
    source = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", source)
    try:
        return environment.from_string(source).render(messages=messages, add_generation_prompt=prompt, **special)
    # A template is somebody's program: whatever it does wrong.
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(f"the checkpoint's chat template cannot be used ({error}); set data.template") from None


def read_template(source: str, special: Mapping[str, str], tokenizer: Tokenizer, image_token: str) -> Template:
    """Reads a chat template with one turn about one picture (`image_token`; "" for a model of text alone).

    The sequence's opening token comes from the template or from the tokenizer, once. What ends an answer is the special
    token that the template writes there, else the model's end of text.

    Raises:
      UserError: the template writes no question, or no picture where the model has one.
    """

    def message(role: str, text: str, picture: bool) -> dict[str, Any]:
        # Templates of models of pictures list a message's parts, those of text alone have it as a string.
        parts = [*([{"type": "image"}] if picture else []), {"type": "text", "text": text}]
        return {"role": role, "content": parts if image_token else text}

    asked = message("user", _QUESTION, True)
    text = render(source, [asked], special, prompt=True)
    before, found, after = text.partition(_QUESTION)
    if not found or (image_token and image_token not in before):
        what = "the question" if not found else f"the picture ({image_token}) before the question"
        raise UserError(f"the checkpoint's chat template does not write {what}; set data.template")
    opening, _, between = before.partition(image_token) if image_token else (before, "", "")
    ended = render(source, [asked, message("assistant", _ANSWER, False)], special, prompt=False)
    return Template(
        opening=opening,
        between="\n",
        closing="",
        before=between,
        after=after,
        end=_first_special(ended.partition(_ANSWER)[2], tokenizer) or special.get("eos_token", ""),
        answer_prefix="" if after[-1:].isspace() else " ",
        anchor=image_token,
        opened_by_tokenizer=not (special.get("bos_token") and text.startswith(special["bos_token"])),
    )


def _first_special(text: str, tokenizer: Tokenizer) -> str:
    """The special token that `text` begins with; "" for none."""
    ids = tokenizer.encode(text.lstrip(), add_special_tokens=False).ids
    token = tokenizer.get_added_tokens_decoder().get(ids[0]) if ids else None
    return token.content if token is not None and token.special else ""
