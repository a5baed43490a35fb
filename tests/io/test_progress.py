"""Progress in a log file: a line now and then, and no escape codes."""

import io

from rich.console import Console

from tavq_plugin.io.progress import SECONDS_BETWEEN_LINES, progress_bar


def test_a_log_file_gets_a_line_now_and_then():
    seconds, log = [0.0], io.StringIO()
    console = Console(file=log, force_terminal=False, width=80)
    with progress_bar(console, detail="loss", clock=lambda: seconds[0]) as progress:
        task = progress.add_task("tavq", total=1000, loss="")
        for done in range(1001):
            seconds[0] = done * SECONDS_BETWEEN_LINES / 400
            progress.update(task, completed=done, loss=f"pixel {done}")
    assert log.getvalue() == "tavq: 400 of 1,000, pixel 400\ntavq: 800 of 1,000, pixel 800\n"


def test_what_is_not_shown_prints_nothing():
    log = io.StringIO()
    console = Console(file=log, force_terminal=False)
    with progress_bar(console, shown=False) as progress:
        progress.advance(progress.add_task("reading", total=None))
        assert progress.tasks[0].completed == 1
    assert log.getvalue() == ""
