"""The README.md of an exported folder: what lies in it, how to use it, what it must not be used for."""

from collections.abc import Mapping
from typing import Any

from fi_jax.weights.bundle import TrainedModel

_ROWS = {
    "face_insight.py": "the PyTorch module: the whole model, in one readable file",
    "face_knowledge.py": "its graph network and alignment head",
    "face_insight.safetensors": "encoders, connectors, graph network, alignment head, label prompts and graph",
    "face_insight.json": "shapes, labels, questions as tokens, options, temperatures, map colours",
    "face_pictures.py, face_alignment.py": "how pictures are read, and faces cut, as `fi-jax ask` does",
    "question_matching.py, phrases.json": "how questions are understood, as `fi-jax ask` does",
    "tokenizer.json": "the language model's tokenizer",
    "adapter/": "the language model's LoRA adapter, for `peft`",
    "base/": "the language model the adapter belongs to, for `transformers`",
    "parser/": "the face parser that makes segmentation maps: a SegFormer, for `transformers`",
    "merged/": "the language model with the adapter merged, for `transformers` alone",
    "config.json, model.json": "the training run's config; labels, base, data sets",
    "rules.json": "logical rules between the labels, each with its source",
}


def model_card(
    model: TrainedModel, base: Mapping[str, Any], *, has_adapter: bool, has_merged: bool, has_parser: bool
) -> str:
    """Returns the card as Markdown."""
    own_base = base["name"] == "base"
    absent = {"adapter/": not has_adapter, "base/": not own_base, "merged/": not has_merged, "parser/": not has_parser}
    rows = "\n".join(f"| `{name}` | {what} |" for name, what in _ROWS.items() if not absent.get(name))
    labels = model.info.get("labels", [])
    sources = ", ".join(model.info.get("sources", [])) or "not recorded"
    kind = "AutoModelForImageTextToText" if "llava" in base["model_type"] else "AutoModelForCausalLM"
    made = f", made from `{base['made_from'].get('name')}`" if own_base else ""
    load_base = '"base"' if own_base else f'"{base["name"]}"'
    adapter = f"""
The adapter alone, on the language model it was trained on:

```python
import peft, transformers
llm = transformers.{kind}.from_pretrained({load_base})
llm = peft.PeftModel.from_pretrained(llm, "adapter")
```
"""
    return f"""# {model.config.name}: a FaceInsight model

Answers questions about one face from its picture and its segmentation map. Exported by fi_jax
(an open implementation of FaceInsight, arXiv 2504.15624).

| file | what it is |
| --- | --- |
{rows}

## Use

```
pip install torch transformers peft safetensors tokenizers pillow
python face_insight.py CROP.png "Is this person smiling?"
```

`CROP.png` is a square picture of one face, cropped as in training ({model.config.data.image_size} pixels a side);
the model also sees the segmentation map of that face, 19 classes listed in `face_insight.json`. {"`model.segment` makes it." if has_parser else "`fi-jax segment` makes one (`--mask MASK.png`)."}
In Python:

```python
from face_insight import FaceInsight
model = FaceInsight.from_folder(".")
crop, mask = model.frame(picture, box)  # the square around one face; or a crop and a map of your own
model.answer(crop, mask, "Is this person smiling?")
model.answer(crop, mask)                # every closed question
model.label_probabilities(crop, mask)   # by the alignment head, without the language model
model.generate(crop, mask, "Describe this face.")
```
{adapter if has_adapter else ""}
## What it belongs to

Language model: `{base["name"]}`{made}, SHA-256 `{base["hash"]}`. `from_folder` checks it: an adapter on another base
gives wrong answers without a word.

Trained on: {sources}. {len(labels)} labels.

## Not for

Research only. Face data sets carry their own non-commercial terms, and so do weights trained on them. What the model
says of a person's race, gender, age or mood is a guess at how annotators would label a picture, with errors that
differ between groups of people. Do not use it to identify people, or to decide anything about a person.
"""
