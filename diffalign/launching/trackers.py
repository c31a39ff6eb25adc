"""The trackers of a run through accelerate: tensorboard, wandb, trackio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from diffalign.errors import DiffalignError, told


def open_trackers(
    names: Sequence[str], folder: Path, config: Mapping[str, Any], stack: ExitStack
) -> Callable[[Mapping[str, Any]], None]:
    """Start the named trackers; what comes back logs a round's row, and the stack ends them."""
    trackers = [_open(name, folder, config) for name in names]
    for tracker in trackers:
        stack.callback(tracker.finish)

    def log(row: Mapping[str, Any]) -> None:
        numbers = {
            key: value for key, value in row.items() if isinstance(value, int | float) and key != "round"
        }
        for tracker in trackers:
            tracker.log(numbers, step=row["round"])

    return log


def _open(name: str, folder: Path, config: Mapping[str, Any]) -> Any:
    kind = LOGGER_TYPE_TO_CLASS[name]
    where = {"logging_dir": folder} if kind.requires_logging_directory else {}
    try:
        tracker = kind("tensorboard" if name == "tensorboard" else folder.name, **where)
        tracker.start()
        if name != "tensorboard":  # whose table takes flat numbers only; config.yaml has them all
            tracker.store_init_configuration(dict(config))
    except Exception as error:  # each tracker has errors of its own
        raise DiffalignError(
            f"the tracker {name} does not start: {told(error)}. Install it (pip install {name}), log in ({name} "
            f"login) or leave it out (trackers=[]); then: diffalign train --resume {folder}"
        ) from error
    return tracker
