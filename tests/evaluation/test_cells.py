"""Who may fill which cell of the two-setting table."""

import pytest

from fi_jax.errors import UserError
from fi_jax.evaluation.cells import Assignment, plan_cells, saw, sources_of


def test_a_training_free_cell_never_holds_a_model_that_saw_the_set():
    cells, blank = plan_cells(["utkface", "expw"], [["utkface", "celeba"]])
    assert cells == [Assignment("utkface", "fine-tuned", 0), Assignment("expw", "training-free", 0)]
    assert blank == [("utkface", "training-free"), ("expw", "fine-tuned")]
    assert [cell.seen for cell in cells] == [True, False]


def test_the_first_model_that_may_fills_a_cell():
    cells, blank = plan_cells(["utkface", "expw"], [["utkface", "expw"], ["expw"], ["utkface"]])
    assert {(cell.dataset, cell.setting): cell.model for cell in cells} == {
        ("utkface", "training-free"): 1,
        ("utkface", "fine-tuned"): 0,
        ("expw", "training-free"): 2,
        ("expw", "fine-tuned"): 0,
    }
    assert not blank


def test_the_same_photographs_under_another_name_are_seen():
    assert saw(["celebamask_hq"], "celeba") and not saw(["celeba"], "utkface")
    cells, blank = plan_cells(["celeba"], [["celebamask_hq"]])
    assert not cells and len(blank) == 2, "neither trained on these labels nor free of these faces"


def test_one_setting_alone():
    cells, blank = plan_cells(["utkface", "expw"], [["utkface"]], ["training-free"])
    assert [cell.dataset for cell in cells] == ["expw"] and blank == [("utkface", "training-free")]


def test_a_model_that_does_not_say_what_it_saw_fills_nothing():
    assert sources_of("m", {"sources": []}) == []
    with pytest.raises(UserError, match="does not record which data sets"):
        sources_of("m", {})
