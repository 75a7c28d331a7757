"""Ablation studies: the variants, the programs they share, training on kept features, the table over seeds."""

from dataclasses import replace

import pytest

from fi_jax.cli.configs import load_config
from fi_jax.errors import UserError
from fi_jax.evaluation.ablation_table import ablation_tables, flat_ablation_table
from fi_jax.experiments.ablation import points_of, programs
from fi_jax.experiments.variants import FULL, NAMES, chosen


def test_variants_are_what_they_say_and_no_doubles():
    base = load_config("nano")
    variants = chosen(base)
    assert variants[0][0].name == FULL and variants[0][1] == base
    names = [variant.name for variant, _ in variants]
    assert {"no_segmentation", "no_ccm", "no_lcm", "lcp", "tau_0.3", "omega_0", "depth_1", "lift", "shuffled"} <= set(
        names
    )
    # τ = 0.4, ω = 0.2, two layers and the semantic form are the full model itself.
    assert not {"tau_0.4", "omega_0.2", "depth_2", "semantic"} & set(names)
    assert len({repr(config) for _, config in variants}) == len(variants)
    lcp = replace(base, loss=replace(base.loss, logic_form="lcp"))
    assert "semantic" in [variant.name for variant, _ in chosen(lcp)]
    with pytest.raises(UserError, match="is not|did you mean|known"):
        chosen(base, ["no_such"])
    assert {"other_map", "second_picture"} <= set(names)
    assert not {"other_map", "second_picture"} & {variant.name for variant, _ in chosen(base, frozen=True)}
    with pytest.raises(UserError, match="other_map must be trained"):
        chosen(base, ["no_ccm", "other_map"], frozen=True)
    assert len(NAMES) == len(set(NAMES))


def test_what_differs_in_numbers_shares_a_program():
    base = load_config("nano")
    points = points_of(chosen(base), [0, 1])
    chunks = programs(points, members=100)
    by_variant = {point.variant.name: i for i, chunk in enumerate(chunks) for point in chunk}
    together = {"full", "no_lcm", "tau_0.2", "omega_0.6", "lift", "shuffled"}
    assert len({by_variant[name] for name in together}) == 1
    apart = ("no_segmentation", "no_ccm", "lcp", "depth_1", "depth_3")
    assert len({by_variant[name] for name in apart} | {by_variant["full"]}) == 6
    assert all({point.seed for point in chunk} == {0, 1} for chunk in chunks)
    assert max(map(len, programs(points, members=4))) == 4
    # Random prompts or a random frozen LLM are drawn from the seed: one program a seed.
    tiny = programs(points_of(chosen(load_config("tiny"), ["no_lcm"]), [0, 1]), members=100)
    assert [[point.name for point in chunk] for chunk in tiny] == [
        ["full-seed0", "no_lcm-seed0"],
        ["full-seed1", "no_lcm-seed1"],
    ]


def point(variant: str, seed: int, value: float) -> dict:
    scores = {"head": {"utkface": {"gender": {"metric": "accuracy", "value": value}}}}
    scores["head"]["utkface"]["age_years"] = {"metric": "mae_years", "value": 10 * value}
    return {"variant": variant, "title": variant.upper(), "seed": seed, "fields": {}, "scores": scores}


def test_the_table_has_means_and_deviations_over_seeds():
    results = [point("full", 0, 0.90), point("full", 1, 0.94), point("no_ccm", 0, 0.80)]
    (table,) = ablation_tables(results, "A note.")
    assert table.header == ["variant", "UTKFace: gender, accuracy", "UTKFace: age in years, MAE (years)"]
    # Sample deviation of 90 and 94: 2.83.
    assert table.rows == [["FULL", "92.0 ± 2.8", "9.20 ± 0.28"], ["NO_CCM", "80.0", "8.00"]]
    assert "| FULL | 92.0 ± 2.8 |" in table.to_markdown() and "A note." in table.to_markdown()
    assert flat_ablation_table(results).to_csv().splitlines()[3] == "no_ccm,head,utkface,gender,accuracy,0.8,,1"
