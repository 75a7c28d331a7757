"""Makes predictions of a model of stated skill about faces that exist only as labels."""

import numpy as np

from fi_jax.data.datasets import find_dataset
from fi_jax.evaluation.predictions import Prediction
from fi_jax.labels.tasks import age_group_of, expected_age

RACES = ("White", "Black", "Asian", "Indian", "Others")


def answers(dataset: str, faces: int, skill: float, seed: int = 0, **kwargs):
    """Yields predictions about `faces` faces; the truths depend on `faces` and `dataset` alone, not on the seed."""
    truths, noise = np.random.default_rng(11), np.random.default_rng(seed)
    for i in range(faces):
        gender = ("male", "female")[int(truths.integers(2))]
        race = RACES[int(truths.integers(5))]
        years = float(truths.integers(0, 95))
        fields = (
            {"gender": gender, "race": race, "age_group": age_group_of(years).removeprefix("age:")}
            if dataset == "utkface"
            else {}
        )
        for q in find_dataset(dataset).questions:
            k = len(q.options)
            label = {"gender": gender, "race": race, "age_group": fields.get("age_group"), "age_years": years}.get(
                q.family
            )
            if label is None:
                label = q.options[int(truths.integers(k))]
            place = min(int(years // 5), 19) if q.family == "age_years" else q.options.index(label)
            scores = noise.normal(0, 1, k)
            scores[place] += skill
            probs = np.exp(scores) / np.exp(scores).sum()
            said = float(expected_age(probs)) if q.family == "age_years" else q.options[int(probs.argmax())]
            options = dict(zip(q.options, map(float, probs)))
            yield Prediction(f"{i:05d}.jpg", dataset, q.family, q.name, label, said, options, **fields, **kwargs)
