"""The tokenizer that belongs to a config's LLM, as a `tokenizers.Tokenizer`, and how a conversation is spelled for it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fi_jax.config import Experiment, WeightsConfig
from fi_jax.errors import UserError
from fi_jax.prompting.chat_template import read_template
from fi_jax.prompting.templates import Template, template
from fi_jax.weights import hf_config
from fi_jax.weights.hub import resolve_folder
from fi_jax.weights.json_fields import read_object

# The first release of LLaVA-1.5 has no chat template in its folder.
_LLAVA = "USER: <image>\n{{ messages[0].content[1].text }} ASSISTANT:"


def load_tokenizer(weights: WeightsConfig) -> Tokenizer:
    """Loads the tokenizer of `weights.tokenizer`, else of the LLM or LLaVA checkpoint that the config names."""
    source = weights.tokenizer or weights.llava or weights.llm
    if source in ("bytes", "random"):
        return byte_tokenizer()
    if source == "smollm2":
        from fi_jax.weights import smollm2

        return smollm2.load_tokenizer()
    if source.endswith(".gguf"):
        from fi_jax.weights import gguf

        return gguf.read_tokenizer(source)
    return read_tokenizer(resolve_folder(source) / "tokenizer.json")


def load_template(config: Experiment, tokenizer: Tokenizer) -> Template:
    """Returns the template that `data.template` names, or the LLM's or LLaVA checkpoint's own ("checkpoint")."""
    if config.data.template != "checkpoint":
        return template(config.data.template)
    source = config.weights.llava or config.weights.llm
    if source in ("random", "smollm2") or source.endswith(".gguf"):
        raise UserError(f"'{source}' has no chat template of its own; set data.template to chatml, vicuna or plain")
    return read_own_template(resolve_folder(source), tokenizer, with_picture=bool(config.weights.llava))


def read_own_template(folder: Path, tokenizer: Tokenizer, with_picture: bool = True) -> Template:
    """Reads the chat template of a checkpoint folder: its processor's, where it has one, else its tokenizer's.

    Args:
      with_picture: as it is spelled about a picture, where the checkpoint has pictures; False reads that of its LLM alone.

    Raises:
      UserError: it has none, or one that cannot be used.
    """
    config = hf_config.read_config(folder)
    image_token = ""
    if with_picture and hf_config.is_composite(config):
        image_id = config.integer("image_token_id", config.integer("image_token_index", 32000))
        image_token = tokenizer.id_to_token(image_id) or ""
        if not image_token:
            raise UserError(f"{config.where}: image_token_index is {image_id}, which is no token of its tokenizer.json")
    described = _object(folder / "tokenizer_config.json") | _object(folder / "special_tokens_map.json")
    special = {name: _content(token) for name, token in described.items() if name.endswith("_token") and token}
    if config.get("model_type") == "paligemma":
        # It has no chat template: its processor spells prompts.
        return Template(
            "", "\n", "", special.get("bos_token", ""), "\n", special.get("eos_token", ""), anchor=image_token
        )
    source = _chat_template(folder, described)
    if source is None and config.get("model_type") == "llava":
        source = _LLAVA.replace("<image>", image_token)
    if source is None:
        raise UserError(
            f"{folder} has no chat template (chat_template.jinja, tokenizer_config.json); set data.template"
        )
    return read_template(source, special, tokenizer, image_token)


def _chat_template(folder: Path, described: dict) -> str | None:
    if (file := folder / "chat_template.jinja").is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read ({error})") from None
    for name in ("chat_template.json", "processor_config.json"):
        if isinstance(found := _object(folder / name).get("chat_template"), str):
            return found
    found = described.get("chat_template")
    # Several, by name.
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}.get("default")
    return found if isinstance(found, str) else None


def _object(path: Path) -> dict:
    return read_object(path) if path.is_file() else {}


def _content(token) -> str:
    """A special token's text: files have it plain or as an object."""
    return token.get("content", "") if isinstance(token, dict) else str(token)


def read_tokenizer(file: Path) -> Tokenizer:
    """Reads a `tokenizer.json`; one that is missing or damaged is a `UserError`."""
    if not file.is_file():
        raise UserError(f"no tokenizer.json in {file.parent}; set weights.tokenizer to a folder that has one")
    with named_damage(str(file)):
        tokenizer = Tokenizer.from_file(str(file))
        # Some damage shows in use alone.
        tokenizer.encode("Is this person smiling?\nYes")
    return tokenizer


@contextlib.contextmanager
def named_damage(where: str) -> Iterator[None]:
    """Turns what the tokenizer library raises over damaged content into a `UserError` that names the file."""
    try:
        yield
    # It has no type of its own, and some damage makes it panic, which is a BaseException.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(f"{where} holds no valid tokenizer ({(str(error).splitlines() or [''])[0][:160]})") from None


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with the answers as single tokens: 256 bytes, then a few words. For tiny random models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = ["<|im_start|>", "<|im_end|>", " Yes", " No", "Yes", "No", *(f" {chr(ord('A') + i)}" for i in range(26))]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer
