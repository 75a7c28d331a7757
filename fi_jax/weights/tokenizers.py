"""The tokenizer that belongs to a config's LLM, as a `tokenizers.Tokenizer`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fi_jax.config import WeightsConfig
from fi_jax.errors import UserError
from fi_jax.weights.hub import resolve_folder


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
