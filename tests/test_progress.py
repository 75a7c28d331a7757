"""What long work tells of itself: a line every 30 seconds where no terminal is, with rate and time left."""

import sys

from fi_jax import progress


def test_a_line_every_30_seconds_off_a_terminal(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_bar("parsing faces", 15_339) as advance:
        for _ in range(100):
            now[0] += 1.0
            advance(2)
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines() == [
        "parsing faces: 60 of 15,339 (2.0/s, 127 min left)",
        "parsing faces: 120 of 15,339 (2.0/s, 127 min left)",
        "parsing faces: 180 of 15,339 (2.0/s, 126 min left)",
    ]


def test_on_a_terminal_it_is_a_bar_that_leaves_nothing_on_stdout(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress_bar("parsing faces", 3) as advance:
        for _ in range(3):
            advance()
    said = capsys.readouterr()
    assert said.out == "" and "parsing faces" in said.err and "3/3" in said.err
