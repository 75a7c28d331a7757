"""FaceInsight in PyTorch, for a folder that `fi-jax export` wrote. Needs torch, transformers, peft, safetensors, tokenizers.

This file stands alone (it imports nothing of fi_jax) and lies in every exported folder as `face_insight.py`, by
`face_knowledge.py` (its graph network and alignment head), `face_pictures.py`, `face_alignment.py`, and
`question_matching.py`, which reads questions in a person's words:

    from face_insight import FaceInsight
    model = FaceInsight.from_folder("exported")
    model.answer(crop, mask, "Is this person smiling?")   # {"Yes": 0.93, "No": 0.07}

    python face_insight.py CROP.png "Is this person smiling?" [--mask MASK.png]

`crop` is a square RGB picture of one face (numpy uint8 `[y, x, 3]`), `mask` its segmentation map (uint8 `[y, x]`, the
19 classes in face_insight.json's order); `model.frame(picture, box)` makes both. Shapes below: b faces, i image tokens,
n labels, d width, t tokens.
"""

import copy
import functools
import hashlib
import inspect
import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import peft
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn

IMAGE_SLOT, SEGMENTATION_SLOT, KNOWLEDGE_SLOT = -1, -2, -3
# What the file beside this one defines, wherever they were imported from: the graph network and the alignment head.
_KNOWLEDGE = runpy.run_path(str(Path(__file__).with_name("face_knowledge.py")))


class Encoder(nn.Module):
    """A vision tower of transformers (`tower`: its config), whose features are taken as our config `c` says."""

    mean: Tensor
    std: Tensor

    def __init__(self, c: dict, tower: dict):
        super().__init__()
        made = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**tower))
        # Older versions of transformers wrap the tower once more.
        self.tower: Any = getattr(made, "vision_model", made)
        # What hides patches in DINOv2's own training, and ViT's pooling; nothing of ours has them.
        for part, name in ((self.tower.embeddings, "mask_token"), (self.tower, "pooler")):
            if hasattr(part, name):
                setattr(part, name, None)
        if c["lora"]["rank"]:
            # Families differ in the name of the layer that ends attention.
            names = [name for name in c["lora"]["targets"] if name != "o_proj"]
            names += ["o_proj"] if "out_proj" in names else []
            lora = peft.LoraConfig(r=c["lora"]["rank"], lora_alpha=c["lora"]["alpha"], target_modules=names)
            # `peft` leaves the adapters alone to be trained.
            peft.inject_adapter_in_model(lora, self.tower).requires_grad_(True)
        self.c, self.size, self.extra = c, c["image_size"], c["class_token"] + c["registers"]
        self.register_buffer("mean", torch.tensor(c["pixel_mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(c["pixel_std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`[b, 3, y, x]` -> tokens `[b, i, d * merge**2]` of hidden state `feature_layer`, and pooled `[b, d]`."""
        hidden = self.tower(pixels, output_hidden_states=True).hidden_states
        m, g = self.c["merge"], self.size // self.c["patch_size"] // self.c["merge"]
        norm = getattr(self.tower, "post_layernorm", None) or self.tower.layernorm
        tokens, last = hidden[self.c["feature_layer"]][:, self.extra :], hidden[-1]
        # Inside a token its m x m patches lie row by row, then come their features.
        patches = (norm(tokens) if self.c["norm_tokens"] else tokens).unflatten(1, (g, m, g, m))
        pooled = norm(last[:, 0] if self.c["pool"] == "class" else last[:, self.extra :].mean(1))
        return patches.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2), pooled


class Connector(nn.Module):
    """Linear, exact GELU, linear: LLaVA's projector; `newline`: a learnt token behind the others."""

    def __init__(self, size_in: int, size_out: int, newline: bool = False):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(size_in, size_out), nn.Linear(size_out, size_out)
        self.newline = nn.Parameter(torch.zeros(size_out)) if newline else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear_2(F.gelu(self.linear_1(x)))
        return x if self.newline is None else torch.cat([x, self.newline.expand(len(x), 1, -1)], 1)


class FaceInsight(nn.Module):
    """The whole model: `settings` is face_insight.json; the language model comes from transformers."""

    prompts: Tensor
    graph: Tensor
    palette: Tensor

    def __init__(self, settings: dict, llm: Any, tokenizer):
        super().__init__()
        self.settings, self.tokenizer, c = settings, tokenizer, settings["model"]
        width, n = c["llm"]["hidden_size"], len(settings["labels"])
        image, seg = c["image_encoder"], c["segmentation_encoder"]
        self.image_encoder = Encoder(image, settings["towers"]["image"])
        self.image_connector = Connector(image["hidden_size"] * image["merge"] ** 2, width, c["image_newline"])
        self.segmentation_encoder: Encoder | None = None
        self.segmentation_connector: Connector | None = None
        if c["use_segmentation"]:
            self.segmentation_encoder = Encoder(seg, settings["towers"]["segmentation"])
            self.segmentation_connector = Connector(seg["hidden_size"] * seg["merge"] ** 2, width)
        self.knowledge = _KNOWLEDGE["PromptGcn"](c["knowledge"])
        self.knowledge_connector = Connector(c["knowledge"]["align_size"], width)
        of_map = seg["hidden_size"] if c["use_segmentation"] else 0
        self.head = _KNOWLEDGE["AlignmentHead"](c["knowledge"], image["hidden_size"], of_map)
        if c["knowledge"].get("score_graph", "off") != "off":
            self.register_buffer("lift", torch.zeros(n, n))
            self.register_buffer("prior", torch.zeros(n))
        self.register_buffer("prompts", torch.zeros(n, c["knowledge"]["prompt_size"]))
        self.register_buffer("graph", torch.zeros(n, n))
        self.register_buffer("palette", torch.tensor(settings["palette"], dtype=torch.float32), persistent=False)
        # In a list, so that its weights are no part of this module's state_dict.
        self._llm: list[Any] = [llm]
        self._parser: list[nn.Module] = []

    @property
    def llm(self) -> Any:
        """The language model of transformers, adapters in place."""
        return self._llm[0]

    @classmethod
    def from_folder(
        cls, folder: str | Path, base: str | None = None, device: str = "cpu", dtype=torch.float32
    ) -> "FaceInsight":
        """Loads an exported folder. `base` is where its language model lies, if not where the export says."""
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        folder = Path(folder)
        settings = json.loads((folder / "face_insight.json").read_text())
        named = settings["base"]["name"]
        found = find_base(base or (str(folder / "base") if named == "base" else named), settings["base"]["hash"])
        kind = "AutoModelForImageTextToText" if "llava" in settings["base"]["model_type"] else "AutoModelForCausalLM"
        llm: Any = getattr(transformers, kind).from_pretrained(found, dtype=dtype)
        if (folder / "adapter").is_dir():
            llm = peft.PeftModel.from_pretrained(llm, folder / "adapter").get_base_model()
        model = cls(settings, llm.to(device).eval(), Tokenizer.from_file(str(folder / "tokenizer.json")))
        # With adapters in the encoders, `peft` renames what it wraps.
        ours = {_plain(key): key for key in model.state_dict()}
        state = load_file(folder / "face_insight.safetensors")
        model.load_state_dict({ours.get(_plain(key), key): value for key, value in state.items()}, strict=True)
        if (folder / "parser").is_dir():
            parser = transformers.SegformerForSemanticSegmentation.from_pretrained(folder / "parser")
            model._parser = [parser.eval().to(device)]
        return model.to(device=device, dtype=dtype).eval()

    def to_pixels(self, pictures: Tensor, encoder: Encoder) -> Tensor:
        """`[b, 3, y, x]` with values 0..255 -> normalised, of the encoder's size."""
        x, size = pictures.to(self.graph.dtype) / 255.0, encoder.size
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        return (x - encoder.mean) / encoder.std

    def map_to_pixels(self, mask: Tensor, encoder: Encoder) -> Tensor:
        """`[b, y, x]` class indices -> their colours as a normalised picture (nearest neighbour)."""
        size = encoder.size
        if mask.shape[-2:] != (size, size):
            rows, columns = ((torch.arange(size, device=mask.device) * s + s // 2) // size for s in mask.shape[-2:])
            mask = mask[:, rows][:, :, columns]
        return (self.palette[mask.long()].permute(0, 3, 1, 2) / 255.0 - encoder.mean) / encoder.std

    @torch.inference_mode()
    def encode(self, crop: np.ndarray, mask: np.ndarray) -> dict[str, Tensor]:
        """Encodes one face: label `scores` `[1, n]` and the language model's `prefix` `[1, t, d]`.

        Raises:
          ValueError: `crop` is not a square picture, or `mask` not its map.
        """
        if crop.dtype != np.uint8 or crop.shape != (len(crop), len(crop), 3):
            raise ValueError(f"the crop must be uint8 [y, x, 3] and square, not {crop.dtype} {list(crop.shape)}")
        if mask.shape[0] != mask.shape[-1] or mask.ndim != 2 or mask.max() >= len(self.palette):
            raise ValueError(f"the mask must be square, [y, x], with classes below {len(self.palette)}")
        c, device = self.settings["model"], self.graph.device
        views = [(crop, mask)]
        if self.settings.get("mirror"):
            views.append((crop[:, ::-1], np.array(self.settings["flipped"], np.uint8)[mask[:, ::-1]]))
        pictures = torch.tensor(np.stack([picture for picture, _ in views]), device=device).permute(0, 3, 1, 2)
        image, pooled = self.image_encoder(self.to_pixels(pictures, self.image_encoder))
        segmentation = segmentation_pooled = None
        if self.segmentation_encoder is not None:
            maps = torch.tensor(np.stack([map_ for _, map_ in views]), device=device)
            maps = self.map_to_pixels(maps, self.segmentation_encoder)
            segmentation, segmentation_pooled = self.segmentation_encoder(maps)
        prompts = self.knowledge(self.prompts, self.graph)
        # The mirror image has a say in the labels' scores alone.
        scores = self.head(pooled, segmentation_pooled, prompts)
        if hasattr(self.head, "relations"):
            scores = self.head.relations(scores, prompts, self.lift, self.prior, self.settings["groups"])
        scores = scores.mean(0, keepdim=True)
        gate = self._label_probabilities(scores)[..., None] if c["knowledge"]["gated"] else 1.0
        tokens = torch.tensor(self.settings["prefix"], device=device)
        prefix = self.llm.get_input_embeddings()(tokens.clamp(min=0))[None].clone()
        prefix[:, tokens == IMAGE_SLOT] = self.image_connector(image[:1])
        if self.segmentation_connector is not None:
            prefix[:, tokens == SEGMENTATION_SLOT] = self.segmentation_connector(cast(Tensor, segmentation)[:1])
        prefix[:, tokens == KNOWLEDGE_SLOT] = self.knowledge_connector(prompts[None] * gate)
        return {"scores": scores, "prefix": prefix}

    @torch.inference_mode()
    def segment(self, crop: np.ndarray) -> np.ndarray:
        """Segments one face: uint8 `[y, x]` of the crop's own size."""
        if not self._parser and self.segmentation_encoder is None:
            return np.zeros(crop.shape[:2], np.uint8)  # This model looks at no map.
        if not self._parser:
            raise ValueError("this folder has no parser/; give a segmentation map made by `fi-jax segment`")
        size = self.settings["parser_size"]
        picture = Image.fromarray(crop)
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
        x = torch.tensor(np.array(picture) / 255.0, dtype=torch.float32, device=self.graph.device)
        x = x.permute(2, 0, 1)[None]
        # ImageNet's statistics, as every SegFormer expects.
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        logits = self._parser[0]((x - mean) / std).logits
        classes = F.interpolate(logits, (size, size), mode="bilinear").argmax(1)[0].to(torch.uint8).cpu().numpy()
        return np.asarray(Image.fromarray(classes).resize(crop.shape[1::-1], Image.Resampling.NEAREST))

    def frame(
        self, picture: np.ndarray, box: tuple[float, ...] | None = None, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cuts one face of a picture as `fi-jax ask` does: the crop and the map that `answer` takes.

        `box` is left, top, right, bottom around the face (None: the whole picture), `mask` the map of the square around it
        (None: the parser's). A model of aligned faces gets them turned and scaled (`face_alignment.py`) where that is trusted.
        """
        s = self.settings
        left, top, right, bottom = box or (0, 0, picture.shape[1], picture.shape[0])
        x, y, half = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2
        square, cut = (
            (x - half, y - half, x + half, y + half),
            functools.partial(_beside("face_pictures")["cut_square"], picture),
        )
        crop, aligned = cut(square, s["image_size"]), s.get("frame") == "aligned"
        if mask is None:
            mask = self.segment(cut(square, s.get("parser_size", s["image_size"])) if aligned else crop)
        framed = aligned and _beside("face_alignment")["into_frame"](
            cut, mask, square, picture.shape[:2], s["image_size"]
        )
        return framed or (crop, np.asarray(Image.fromarray(mask).resize(crop.shape[:2], Image.Resampling.NEAREST)))

    @property
    def _cache_argument(self) -> str:
        """What this version of transformers calls the argument that holds earlier keys and values."""
        return "cache" if "cache" in inspect.signature(type(self.llm.model).forward).parameters else "past_key_values"

    def _cache(self) -> dict[str, Any]:
        """An empty cache, which the language model fills in place."""
        return {self._cache_argument: transformers.DynamicCache()}

    def match(self, text: str) -> Any:
        """Finds the closed question that answers `text`, and what `text` claims of it (`question_matching.Match`)."""
        match = _beside("question_matching")["match_question"](
            text, [SimpleNamespace(**q) for q in self.settings["questions"]]
        )
        if match is None:
            raise ValueError(f"no closed question '{text}'; face_insight.json lists them (or use generate())")
        return match

    @torch.inference_mode()
    def answer(self, crop: np.ndarray, mask: np.ndarray, text: str | None = None) -> dict:
        """Probability of each option of one closed question; without one, `{question name: {option: probability}}`.

        Of a question that a closed one answers in other words ("Is she over 40?"), the probability of "Yes" and "No".
        """
        if text is None:
            return self._ask(crop, mask, self.settings["questions"])
        match = self.match(text)
        answers = self._ask(crop, mask, [vars(match.question)])[match.question.name]
        if match.weights is None:
            return answers
        yes = sum(weight * p for weight, p in zip(match.weights, answers.values(), strict=True))
        return {"Yes": yes, "No": 1 - yes}

    def _ask(self, crop: np.ndarray, mask: np.ndarray, questions: list[dict]) -> dict[str, dict[str, float]]:
        """Answers in the questions' order; those that `nearer` names, or their family, see the face brought nearer."""
        ask = self._by_head if self.settings["answers_by"] == "head" else self._by_llm
        near = [q for q in questions if not {q["name"], q["family"]}.isdisjoint(self.settings.get("nearer", []))]
        rest = [q for q in questions if q not in near]
        answers = ask(crop, mask, rest) if rest else {}
        if near:
            crop, mask = _beside("face_alignment")["nearer"](crop, mask)
            answers |= ask(crop, mask, near)
        return {q["name"]: answers[q["name"]] for q in questions}

    def _label_probabilities(self, scores: Tensor) -> Tensor:
        return _KNOWLEDGE["label_probabilities"](scores, self.settings.get("groups", []))

    def _by_head(self, crop: np.ndarray, mask: np.ndarray, questions: list[dict]) -> dict[str, dict[str, float]]:
        """Yes/no: the label's log-odds ("No" asserts no label and has 0). A choice: softmax of its options' scores."""
        logits, answers = self.encode(crop, mask)["scores"].double(), {}
        alone, labels = torch.logit(self._label_probabilities(logits)), self.settings["labels"]
        for q in questions:
            scores = dict(zip(labels, (alone if None in q["labels"] else logits)[0])) | {None: logits.new_zeros(())}
            options = torch.stack([scores[label] for label in q["labels"]])
            p = torch.softmax(options / self.settings["head_temperatures"].get(q["family"], 1.0), -1)
            answers[q["name"]] = dict(zip(q["options"], p.tolist(), strict=True))
        return answers

    def _by_llm(self, crop: np.ndarray, mask: np.ndarray, questions: list[dict]) -> dict[str, dict[str, float]]:
        prefix = self.encode(crop, mask)["prefix"]
        self.llm.model(inputs_embeds=prefix, use_cache=True, **(past := self._cache()))
        embed, head, answers = self.llm.get_input_embeddings(), self.llm.get_output_embeddings(), {}
        for start in range(0, len(questions), 16):
            group = questions[start : start + 16]
            length = max(len(q["tokens"]) for q in group)
            padded = [q["tokens"] + [0] * (length - len(q["tokens"])) for q in group]
            tokens = torch.tensor(padded, device=prefix.device)
            # Every question continues its own copy of the prefix; padding on the right is behind the answers.
            own = copy.deepcopy(past)
            own[self._cache_argument].batch_repeat_interleave(len(group))
            positions = torch.arange(length, device=prefix.device)[None] + prefix.shape[1]
            own |= {"inputs_embeds": embed(tokens), "position_ids": positions.expand(len(group), -1)}
            hidden = self.llm.model(use_cache=True, **own).last_hidden_state
            for row, q in zip(hidden, group, strict=True):
                logits = head(row[len(q["tokens"]) - 1])[torch.tensor(q["option_tokens"], device=prefix.device)]
                # A temperature a task family, from validation.
                p = torch.softmax(logits.float() / self.settings["temperatures"].get(q["family"], 1.0), -1)
                answers[q["name"]] = dict(zip(q["options"], p.tolist(), strict=True))
        return answers

    @torch.inference_mode()
    def label_probabilities(self, crop: np.ndarray, mask: np.ndarray) -> dict[str, float]:
        """Probability of every label by the alignment head (no language model)."""
        probabilities = self._label_probabilities(self.encode(crop, mask)["scores"].float())[0].tolist()
        return dict(zip(self.settings["labels"], probabilities, strict=True))

    @torch.inference_mode()
    def generate(
        self, crop: np.ndarray, mask: np.ndarray, text: str = "Describe this face.", max_new_tokens: int = 64
    ) -> str:
        """Answers a free-form question, greedily. A model of stage 1 raises `ValueError`: it has no LLM that reads faces."""
        if self.settings["answers_by"] == "head":
            raise ValueError("this model was trained for stage 1 only and answers closed questions; see answer()")
        template = self.settings["template"]
        anchor, text = template["anchor"], template["before"] + text + template["after"]
        before, asked = (self.tokenizer.encode(t, add_special_tokens=False).ids for t in (anchor, anchor + text))
        asked = asked[len(before) :]
        end = self.settings["end_id"]
        prefix, embed = self.encode(crop, mask)["prefix"], self.llm.get_input_embeddings()
        x = torch.cat([prefix, embed(torch.tensor([asked], device=prefix.device))], 1)
        past, ids = self._cache(), list[int]()
        while len(ids) < max_new_tokens:
            output = self.llm.model(inputs_embeds=x, use_cache=True, **past)
            token = int(self.llm.get_output_embeddings()(output.last_hidden_state[0, -1]).argmax())
            if token == end:
                break
            ids.append(token)
            x = embed(torch.tensor([[token]], device=prefix.device))
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def find_base(base: str, expected: str) -> Path:
    """Returns the folder of `base` (a folder, or `name` or `name@revision` on the Hub, which is fetched).

    Raises:
      ValueError: its files are not those that the adapter was trained on.
    """
    folder = Path(base)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        name, _, revision = base.partition("@")
        wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    digests = []
    for file in files:
        # The Hub's cache names large files by their SHA-256.
        if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", file.resolve().name):
            digests.append(file.resolve().name)
            continue
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    found = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    if found != expected:
        raise ValueError(f"{base} has hash {found[:12]}…; the adapter was trained on {expected[:12]}…: another base")
    return folder


def _plain(key: str) -> str:
    return re.sub(r"\.base_layer(?=\.)|(?<=\.lora_[AB])\.default(?=\.)", "", key)


@functools.cache
def _beside(name: str) -> dict[str, Any]:
    """What `NAME.py`, beside this file, defines; wherever this one was imported from."""
    return runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))


def main() -> None:
    """Answers one question about a cropped face, or all of them."""
    import argparse

    parser = argparse.ArgumentParser(description="Ask about one face.")
    parser.add_argument("crop", help="a square picture of one face")
    parser.add_argument("question", nargs="?", help="a closed question; all of them without one")
    parser.add_argument("--mask", help="its segmentation map; made by parser/ when not given")
    arguments = parser.parse_args()
    try:
        crop = _beside("face_pictures")["read_picture"](arguments.crop)
        if crop.shape[0] != crop.shape[1]:
            raise ValueError(f"{arguments.crop} is {crop.shape[1]}x{crop.shape[0]}; give a square crop of one face")
        model = FaceInsight.from_folder(Path(__file__).parent)
        crop, mask = model.frame(crop, mask=np.array(Image.open(arguments.mask)) if arguments.mask else None)
        answer = model.answer(crop, mask, arguments.question)
        if arguments.question:
            match = model.match(arguments.question)
            print(f"answered: {match.question.text}{f' ({match.claim})' if match.claim else ''}", file=sys.stderr)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
