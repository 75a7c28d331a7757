"""Points over configs: fields by name and type, and names that stay."""

import dataclasses

import pytest

from fi_jax.config import Experiment, SourceConfig
from fi_jax.errors import UserError
from fi_jax.experiments.points import apply, config_source, point_id


def test_fields_are_set():
    config = apply(
        Experiment(),
        {
            "train.learning_rate": 1,
            "model.llm.lora.alpha": 8.0,
            "train.trainable": ["a", "b"],
            "loss.logic_form": "lcp",
        },
    )
    assert config.train.learning_rate == 1.0 and isinstance(config.train.learning_rate, float)
    assert config.model.llm.lora.alpha == 8.0 and config.loss.logic_form == "lcp"
    assert config.train.trainable == ("a", "b")


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ({"train.learning_rat": 1.0}, "did you mean 'train.learning_rate'"),
        ({"learning_rate": 1.0}, "did you mean 'train.learning_rate'"),
        ({"train": 1}, "group of fields"),
        ({"train.steps": 1.5}, "type int"),
        ({"train.steps": True}, "type int"),
        ({"model.knowledge.gated": 1}, "type bool"),
        ({"loss.logic_form": "soft"}, "semantic, lcp"),
        ({"train.steps": 0}, "must be positive"),
    ],
)
def test_mistakes(point, says):
    with pytest.raises(UserError, match=says):
        apply(Experiment(), point)


def test_name_of_a_point_is_what_it_computes():
    base = Experiment()
    assert point_id(apply(base, {"train.seed": 1})) == point_id(
        dataclasses.replace(apply(base, {"train.seed": 1}), name="x")
    )
    assert point_id(apply(base, {"train.seed": 1})) != point_id(base)


def test_config_file_gives_the_config_back(tmp_path):
    import runpy

    from fi_jax.config import DataConfig
    from fi_jax.config_tree import to_dict

    config = Experiment(name="x", data=DataConfig(sources=(SourceConfig("utkface", "faces"),)))
    (tmp_path / "c.py").write_text(config_source(to_dict(config), "Title."))
    assert runpy.run_path(str(tmp_path / "c.py"))["config"]() == config
