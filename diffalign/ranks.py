"""Which of the launched processes this is, known before anything heavy is imported."""

from __future__ import annotations

import os


def is_main() -> bool:
    """Whether this process writes files and speaks; a run of its own always does."""
    return os.environ.get("RANK", "0") == "0"
