"""Progress on stderr: a bar with rate and remaining time on a terminal, a line every 30 seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS = 30.0


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Yields `advance(count=1)`, to be called as work is done."""
    if not sys.stderr.isatty():
        yield _lines(description, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, rate="")

        def advance(count: int = 1) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=count, rate=f"{_rate(speed)}/s" if speed else "")

        yield advance


def _lines(description: str, total: int) -> Callable[..., None]:
    start = told = time.monotonic()
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal told, done
        done += count
        now = time.monotonic()
        if now - told >= _SECONDS:
            told, speed = now, done / (now - start)
            left = f"{(total - done) / speed / 60:,.0f} min left" if speed else "not one yet"
            print(f"{description}: {done:,} of {total:,} ({_rate(speed)}/s, {left})", file=sys.stderr, flush=True)

    return advance


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"
