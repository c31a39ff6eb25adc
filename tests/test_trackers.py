"""Trackers log numbers a round, and a missing one says how to install it."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffalign.errors import DiffalignError
from diffalign.launching import trackers
from diffalign.launching.trackers import open_trackers


def test_tensorboard_holds_the_numbers_of_every_round(tmp_path):
    with ExitStack() as stack:
        log = open_trackers(["tensorboard"], tmp_path, {"lr": 1.0}, stack)
        for number in range(3):
            log(
                {"round": number, "reward/total/mean": number / 2, "note": "words are left out", "gone": None}
            )
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["reward/total/mean"]
    assert [(e.step, e.value) for e in events.Scalars("reward/total/mean")] == [(0, 0.0), (1, 0.5), (2, 1.0)]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_a_missing_tracker_says_how_to_install_it(tmp_path):
    with ExitStack() as stack, pytest.raises(DiffalignError, match="pip install wandb"):
        open_trackers(["wandb"], tmp_path, {}, stack)


class LoggedOut:
    """A tracker whose service does not know us, as wandb without a key."""

    requires_logging_directory = False

    def __init__(self, name):
        self.name = name

    def start(self):
        raise RuntimeError("api_key not configured (no-tty)")


def test_a_tracker_that_does_not_start_says_how_to_log_in(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "wandb", LoggedOut)
    with (
        ExitStack() as stack,
        pytest.raises(DiffalignError, match=r"api_key not .*wandb login.*trackers=\[\]"),
    ):
        open_trackers(["wandb"], tmp_path, {}, stack)
