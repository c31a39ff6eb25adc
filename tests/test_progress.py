"""Bars show rounds, phases and rewards on a terminal, and nothing anywhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

CODE = """
from diffalign.launching.progress import Bars
with Bars(4, {"sampling": 8}) as bars:
    bars.advance("sampling", 4)
    bars.finished({"round": 0, "reward/total/mean": 0.125, "heldout/gain_sd": 0.5})
    bars.bars.refresh()
    print([(t.description, t.completed, t.total) for t in bars.bars.tasks])
    bars.advance("sampling", 4)
    bars.advance("sampling", 2)
    print([(t.description, t.completed, t.total) for t in bars.bars.tasks])
"""
FIRST = "[('rounds', 1, 4), ('sampling', 4, 8)]"
STARTED_OVER = "[('rounds', 1, 4), ('sampling', 2, 8)]"

SEARCH = """
from diffalign.launching.progress import SearchBars
with SearchBars(4) as bars:
    for number, best in ((0, 0.5), (1, float("-inf")), (0, 1.0), (1, 0.25)):
        bars.hear(number, best)
    bars.finished(0)
    bars.bars.refresh()
    (task,) = bars.bars.tasks
    print(task.completed, task.total, task.fields["note"])
"""


def test_nothing_is_drawn_where_nobody_looks():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [FIRST, STARTED_OVER]


def on_a_terminal(code: str) -> str:
    """What a terminal is shown."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=theirs, check=True, env=environment
    )
    os.close(theirs)
    return os.read(ours, 100_000).decode()


def test_a_terminal_sees_rounds_phase_and_rewards():
    shown = on_a_terminal(CODE)
    assert all(word in shown for word in ("rounds", "sampling", "1/4", "reward 0.125", "held-out +0.50 sd"))


def test_a_search_shows_finished_prompts_and_the_best_reward_so_far():
    done = subprocess.run([sys.executable, "-c", SEARCH], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1 4 best reward 0.625, 4 pictures scored\n", "")
    shown = on_a_terminal(SEARCH)
    assert all(word in shown for word in ("prompts", "1/4", "best reward 0.625"))
