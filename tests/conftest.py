"""Fixtures that any test may ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real-weights", action="store_true", help="also run what needs published weights")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--real-weights") or os.environ.get("DIFFALIGN_REAL_WEIGHTS") == "1":
        return
    for item in items:
        if item.get_closest_marker("real_weights"):
            item.add_marker(pytest.mark.skip(reason="needs published weights: --real-weights"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors on one thread: on a busy machine, threads that wait for each other cost more than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
