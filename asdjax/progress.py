"""Progress of long work on stderr."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator


@contextlib.contextmanager
def reporter(text: str) -> Iterator:
    """Progress on stderr: yields report(done, total, text). A bar on a terminal, else a line every tenth or 20 s."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not logging.getLogger().isEnabledFor(logging.INFO):
        yield lambda done, total, text: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        first, last = [], [0.0, time.monotonic()]
        logging.info("%s ...", text)

        def line(done, total, text):
            now = time.monotonic()
            first[:] = first or [done, now]  # the first call holds the compilation, which says nothing of the rest
            if done == total or done / total - last[0] >= 0.1 or now - last[1] > 20:
                last[:] = done / total, now
                rate = (now - first[1]) / (done - first[0]) if done > first[0] else None
                left = "" if rate is None else f", {rate * (total - done):.0f} s left"
                logging.info("%s  (%d %%%s)", text, 100 * done // total, left)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)
