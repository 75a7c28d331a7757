"""The one table type: what each format shows."""

import csv
import io
import json

from rich.console import Console

from fi_jax.evaluation.table import Table

TABLE = Table(
    ("variant", "accuracy", "empty", "note"),
    [["full", 0.91437, None, "a|b"], ["no [CCM]", None, None, "<i>\n"]],
    notes=("Two seeds.",),
    bold={0},
    tags=({"task": "race"}, {"task": '"'}),
)


def test_programs_read_exact_values():
    assert list(csv.reader(io.StringIO(TABLE.to_csv())))[1:] == [
        ["full", "0.91437", "", "a|b"],
        ["no [CCM]", "", "", "<i>\n"],
    ]
    assert json.loads(TABLE.to_json())[0] == {"variant": "full", "accuracy": 0.91437, "empty": None, "note": "a|b"}


def test_people_read_text():
    lines = TABLE.to_markdown().splitlines()
    assert lines[0] == "| variant | accuracy | empty | note |" and lines[2] == "| full | 0.9144 | – | a\\|b |"
    assert lines[-1] == "Two seeds.  "
    html = TABLE.to_html()
    assert '<tr data-task="race" class="headline"><td data-label="variant">full</td>' in html
    assert '<td data-label="accuracy">0.9144</td><td data-label="empty">–</td>' in html
    assert '<tr data-task="&#34;"><td data-label="variant">no [CCM]</td>' in html and '"note">&lt;i&gt;' in html


def test_the_terminal_leaves_out_columns_without_values():
    console = Console(width=80, file=io.StringIO())
    TABLE.show(console)
    text = console.file.getvalue()
    assert "no [CCM]" in text and "Two seeds." in text and "empty" not in text
