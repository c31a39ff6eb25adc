"""Statistics of the held-out comparison."""

import pytest
import torch

from diffalign.training.evaluate import bootstrap, gain, pairwise_distance, win_rate


def test_gain_is_in_standard_deviations_of_the_base():
    base = torch.tensor([0.0, 2.0, 4.0, 6.0])
    value, (low, high) = gain(base, base + 3)
    assert value == pytest.approx(3 / base.std(correction=0).item())
    assert low == pytest.approx(value)
    assert high == pytest.approx(value)


def test_win_rate_counts_ties_half():
    assert win_rate(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 1.0]))[0] == 0.5


def test_bootstrap_interval_is_that_of_the_normal_approximation():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = bootstrap(values)
    half = 1.96 * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - half, abs=0.01)
    assert high == pytest.approx(values.mean().item() + half, abs=0.01)


def test_pairwise_distance():
    assert pairwise_distance(torch.eye(3)) == pytest.approx(1.0)
    assert pairwise_distance(torch.ones(4, 2)) == pytest.approx(0.0)
    assert pairwise_distance(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2.0)
