"""Any Hugging Face image–text model through the same protocols: closed answers scored by likelihood, with PyTorch.

`load_other_model("hf:llava-hf/llava-1.5-7b-hf")` answers like `inference.answerer.Answerer`, so evaluation does not
tell them apart. Such a model has no alignment head and sees no segmentation map.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fi_jax.config import DataConfig, Experiment, ModelConfig
from fi_jax.errors import UserError
from fi_jax.inference.answerer import OptionProbabilities
from fi_jax.labels.questions import Question
from fi_jax.labels.registry import vocabulary

PREFIX = "hf:"
# These models were not trained on our questions' format, so the question says what form the answer takes.
_BINARY, _LETTERED = " Answer with Yes or No.", " Answer with the letter of the right option."
_NO_TORCH = "--model hf:… needs PyTorch; pip install 'fi_jax[torch]'"


def load_other_model(name: str, batch_size: int = 8) -> "OtherModel":
    """Loads `hf:NAME` or `hf:FOLDER` on the GPU that PyTorch sees, else on the CPU.

    Args:
      name: with or without "hf:"; a Hub name, perhaps `name@revision`, or a local folder.
      batch_size: questions about one face in one forward pass.

    Raises:
      UserError: PyTorch is missing, or there is no such image–text model.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(_NO_TORCH) from error
    from transformers import AutoModelForImageTextToText

    source, _, revision = name.removeprefix(PREFIX).partition("@")
    pinned = {"revision": revision} if revision else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = _processor(source, pinned)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=torch.bfloat16 if device == "cuda" else torch.float32, **pinned
        )
    except ImportError as error:
        # transformers names what it needs for this model (torchvision, num2words, …) over several lines.
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"'{source}' needs a package that is not installed ({reason})") from error
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"'{source}' is no image–text model that transformers can load ({reason})") from error
    if not hasattr(processor, "tokenizer"):
        raise UserError(f"'{source}' has no processor for pictures and text (preprocessor_config.json and tokenizer)")
    return OtherModel(source, processor, model.to(device).eval(), batch_size)


def _processor(source: str, pinned: dict[str, str]):
    """The model's own processor; where torchvision is missing, without its part for videos, which alone needs it."""
    from transformers import PROCESSOR_MAPPING, AutoConfig, AutoProcessor
    from transformers.utils import is_torchvision_available

    config = AutoConfig.from_pretrained(source, **pinned)
    own: Any = PROCESSOR_MAPPING.get(type(config), None)
    parts = own.get_attributes() if own else []
    if own is None or is_torchvision_available() or "video_processor" not in parts:
        return AutoProcessor.from_pretrained(source, **pinned)
    kept = [part for part in parts if part != "video_processor"]
    pictures_only: Any = type(own.__name__, (own,), {"get_attributes": classmethod(lambda _: kept)})
    return pictures_only.from_pretrained(source, **pinned)


class OtherModel:
    """A Hugging Face image–text model that answers closed questions."""

    def __init__(self, name: str, processor, model, batch_size: int = 8):
        """Prefer `load_other_model`."""
        self.processor, self.model, self.batch_size = processor, model, batch_size
        self.tokenizer = processor.tokenizer
        # Prompts of different length then end at the same place, where the answer is read.
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.vocabulary = vocabulary("all")
        self.is_instruction_tuned = True
        self.info: dict[str, Any] = {"name": name, "sources": []}
        self.config = Experiment(
            data=DataConfig(vocabulary="all", image_size=336), model=ModelConfig(use_segmentation=False)
        )
        self._continuation = cache(self._tokens_of)

    def answerable(self, questions: Sequence[Question]) -> list[Question]:
        """All of them: the questions carry their own options."""
        return list(questions)

    def answer(
        self, image: UInt8[np.ndarray, "b y x 3"], mask, questions: Sequence[Question], *, by_llm: bool = True
    ) -> OptionProbabilities:
        """Scores every option of every question about every face. `mask` is not used.

        Probabilities are the softmax over a question's options of each option's log-likelihood after the prompt.
        """
        if not by_llm:
            raise UserError("another model has no alignment head; leave out --head-only")
        width = max(len(q.options) for q in questions)
        probabilities = np.zeros((len(image), len(questions), width), np.float32)
        for face, picture in enumerate(image):
            for start in range(0, len(questions), self.batch_size):
                some = questions[start : start + self.batch_size]
                for at, scores in enumerate(self._scores(picture, some), start):
                    p = np.exp(scores - scores.max())
                    probabilities[face, at, : len(p)] = p / p.sum()
        return OptionProbabilities(probabilities, None, None)

    def generate(
        self, image: UInt8[np.ndarray, "b y x 3"], questions: Sequence[Question], max_new_tokens: int
    ) -> list[list[str]]:
        """Generates an answer to every question about every face, greedily: `b` lists of texts."""
        import torch

        found = []
        for picture in image:
            inputs = self._inputs(picture, [self.prompt(q) for q in questions])
            with torch.inference_mode():
                generated = self.model.generate(
                    **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
                )
            new = generated[:, inputs["input_ids"].shape[1] :]
            found.append([text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)])
        return found

    def prompt(self, question: Question) -> str:
        """The text put to the model, in its own chat format where it has one."""
        text = question.text + (_BINARY if question.is_binary else _LETTERED)
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": text}]
            return self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        image_token = getattr(self.processor, "image_token", "<image>")
        # Without a chat template: LLaVA-1.5's own words; PaliGemma's processor spells the end of its prompts itself.
        if "PaliGemma" in type(self.processor).__name__:
            return image_token + text
        return f"USER: {image_token}\n{text} ASSISTANT:"

    def _inputs(self, picture: np.ndarray, prompts: list[str]) -> dict:
        from PIL import Image

        # One list of pictures a prompt: processors that allow several pictures need it, the others flatten it.
        pictures = [[Image.fromarray(picture)] for _ in prompts]
        # A chat template may have written the token that opens a sequence: once is enough.
        bos = self.tokenizer.bos_token
        special = {"add_special_tokens": False} if bos and all(prompt.startswith(bos) for prompt in prompts) else {}
        inputs = self.processor(images=pictures, text=prompts, padding=True, return_tensors="pt", **special)
        return {k: v.to(self.model.device) for k, v in inputs.items()}

    def _logits(self, inputs: dict, forced: Sequence[int] = (0,)) -> np.ndarray:
        """Log-probabilities (`b s v`) before each of `s` answer tokens, all but the last of which are put in.

        By the model's own `generate`, which knows its masks, positions and cache.
        """
        import torch

        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            generated = self.model.generate(
                **inputs, max_new_tokens=len(forced), min_new_tokens=len(forced), do_sample=False, output_logits=True,
                return_dict_in_generate=True, pad_token_id=self.tokenizer.pad_token_id,
                prefix_allowed_tokens_fn=lambda _, ids: [forced[len(ids) - length]],
            )  # fmt: skip
        return torch.stack([step.float().log_softmax(-1) for step in generated.logits], 1).cpu().numpy()

    def _scores(self, picture: np.ndarray, questions: Sequence[Question]) -> list[np.ndarray]:
        """Log-likelihood of each option of each question, in nats."""
        inputs = self._inputs(picture, [self.prompt(q) for q in questions])
        tail = self.tokenizer.decode(inputs["input_ids"][0, -4:])
        last = self._logits(inputs)[:, 0]
        found = []
        for row, question in enumerate(questions):
            tokens = [self._continuation(tail, answer) for answer in question.answers]
            if all(len(t) == 1 for t in tokens):
                found.append(last[row, [t[0] for t in tokens]])
            else:
                found.append(self._long_scores(picture, question, tokens))
        return found

    def _long_scores(self, picture: np.ndarray, question: Question, options: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Log-likelihoods of options of several tokens, one pass an option."""
        inputs = self._inputs(picture, [self.prompt(question)])
        steps = [self._logits(inputs, tokens)[0] for tokens in options]
        return np.array([s[range(len(t)), list(t)].sum() for s, t in zip(steps, options)])

    def _tokens_of(self, tail: str, answer: str) -> tuple[int, ...]:
        """Tokens of an answer as they follow the prompt's end: " Yes" after a word, "Yes" after a line end."""
        text = answer if not tail or tail[-1].isspace() else f" {answer}"
        before = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        both = self.tokenizer(tail + text, add_special_tokens=False)["input_ids"]
        if both[: len(before)] == before and len(both) > len(before):
            return tuple(both[len(before) :])
        return tuple(self.tokenizer(answer, add_special_tokens=False)["input_ids"])
