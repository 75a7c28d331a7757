"""One type for every table of results: header, rows and notes, printed or written as Markdown, CSV, HTML or JSON.

    table = Table(("variant", "accuracy"), [["full", 0.914], ["without CCM", None]], notes=("Two seeds.",))
    table.show()
    write_text(folder / "table.md", table.to_markdown())

Markdown, HTML and the terminal show text (`cell_text`); CSV and JSON keep the values as they are. Where readers need
rounded text and programs need exact numbers, make two tables: one to show and one to write.
"""

import csv
import io
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

Value = str | int | float | bool | None
BLANK = "–"
# Characters a line where the output has no width of its own (a file, a pipe).
_WIDTH = 240


def cell_text(value: Value) -> str:
    """Returns a value as readers see it: a dash for None, four significant digits of a float, else its text."""
    if value is None:
        return BLANK
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      header: one name a column.
      rows: one value a column in each; None is blank.
      notes: sentences that stand below the table (not in CSV or JSON).
      title: stands above it in HTML.
      bold: positions of the rows that stand out.
      tags: for each row, `data-NAME` attributes of its HTML, by which a page filters; empty for none.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Value]]
    notes: Sequence[str] = ()
    title: str = ""
    bold: Container[int] = ()
    tags: Sequence[Mapping[str, str]] = ()

    def records(self) -> list[dict[str, Value]]:
        """Returns one mapping from column to value a row."""
        return [dict(zip(self.header, row, strict=True)) for row in self.rows]

    def to_json(self) -> str:
        """Returns the rows as a JSON list of objects."""
        return json.dumps(self.records(), indent=1) + "\n"

    def to_csv(self) -> str:
        """Returns header and rows as CSV; None is an empty field."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.header, *self.rows])
        return out.getvalue()

    def to_markdown(self) -> str:
        """Returns the table in Markdown, its notes below it."""

        def line(cells: Sequence[Value]) -> str:
            texts = [" ".join(cell_text(cell).split("\n")).replace("|", "\\|") for cell in cells]
            return "| " + " | ".join(texts) + " |"

        lines = [line(self.header), "|" + " --- |" * len(self.header), *map(line, self.rows)]
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)]) + "\n"

    def to_html(self) -> str:
        """Returns a `<table>` element; title and notes are left to the page. Needs `jinja2`.

        Each cell carries its column's name (`data-label`), so that a narrow page can stack the cells of a row.
        """
        from markupsafe import escape

        def row(i: int, cells: Sequence[Value]) -> str:
            tags = self.tags[i] if self.tags else {}
            attributes = "".join(f' data-{name}="{escape(value)}"' for name, value in tags.items())
            attributes += ' class="headline"' if i in self.bold else ""
            texts = zip(self.header, map(cell_text, cells), strict=True)
            inner = "".join(f'<td data-label="{escape(name)}">{escape(text)}</td>' for name, text in texts)
            return f"<tr{attributes}>{inner}</tr>"

        header = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.header)
        body = "\n".join(row(i, cells) for i, cells in enumerate(self.rows))
        return f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"

    def show(self, console=None) -> None:
        """Prints the table with its notes, by `rich`; columns without any value are left out."""
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        used = [i for i in range(len(self.header)) if not self.rows or any(row[i] is not None for row in self.rows)]
        # `Text`, because rich reads "[low, high]" as markup.
        table = RichTable(caption=Text("\n".join(self.notes)), caption_justify="left")
        for i in used:
            table.add_column(Text(self.header[i]))
        for i, row in enumerate(self.rows):
            table.add_row(*(Text(cell_text(row[j])) for j in used), style="bold" if i in self.bold else None)
        if console is None:
            console = Console()
            console = console if console.is_terminal else Console(width=_WIDTH)
        console.print(table)
