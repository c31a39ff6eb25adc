"""The combiners against their closed forms (Coste, Eisenstein, Wang, Moskovitz and co-workers)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from diffalign.rewarding.combine import (
    LogSigmoid,
    Mean,
    MeanMinusStd,
    MeanMinusVariance,
    Median,
    Members,
    Min,
    WeightedSum,
)
from diffalign.rewarding.compose import COMBINERS
from diffalign.rewarding.lagrangian import Constraint, Lagrangian

ENSEMBLES = [Mean(), Min(), Median(), MeanMinusVariance(), MeanMinusStd()]
SCORES = arrays("float64", (3, 4), elements=st.floats(-5, 5))


def members(*rows: list[float] | Tensor, **more) -> Members:
    """Rewards called a, b, c, ... with these scores."""
    named = {
        label: torch.as_tensor(row, dtype=torch.float64) for label, row in zip("abcdef", rows, strict=False)
    }
    return Members(named, more.pop("weights", dict.fromkeys(named, 1.0)), **more)


def test_weighted_sum():
    found = WeightedSum()(members([1.0, 2.0], [10.0, 20.0], weights={"a": 2.0, "b": -0.5}))
    assert found.tolist() == [-3.0, -6.0]


@settings(deadline=None, max_examples=50)
@given(SCORES)
def test_the_worst_is_at_most_the_mean(rows):
    m = members(*torch.from_numpy(rows))
    assert (Min()(m) <= Mean()(m) + 1e-12).all()
    assert (Min()(m) <= Median()(m)).all()


@settings(deadline=None, max_examples=50)
@given(SCORES)
def test_without_penalty_uncertainty_is_no_matter(rows):
    m = members(*torch.from_numpy(rows))
    for combiner in (MeanMinusVariance(0.0), MeanMinusStd(0.0)):
        torch.testing.assert_close(combiner(m), Mean()(m))


@pytest.mark.parametrize("combiner", ENSEMBLES, ids=lambda c: type(c).__name__)
def test_identical_members_combine_to_themselves(combiner):
    row = torch.tensor([0.3, -2.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(combiner(members(row, row, row)), row)


def test_ensembles_on_a_worked_example():
    m = members([1.0], [2.0], [6.0])
    assert [c(m).item() for c in (Mean(), Min(), Median())] == [3.0, 1.0, 2.0]
    assert MeanMinusVariance(0.1)(m).item() == pytest.approx(3 - 0.1 * 7)  # (4 + 1 + 9) / 2
    assert MeanMinusStd(2.0)(m).item() == pytest.approx(3 - 2 * 7**0.5)
    assert Median()(members([1.0], [2.0], [6.0], [7.0])).item() == 4.0


def test_log_sigmoid_is_at_most_0_monotone_and_has_slope_1_far_below_the_level():
    level = torch.full((201,), 2.0, dtype=torch.float64)
    r = torch.linspace(-48, 52, 201, dtype=torch.float64, requires_grad=True)
    u = LogSigmoid()(members(r, levels={"a": level}))
    (slope,) = torch.autograd.grad(u.sum(), r)
    assert (u <= 0).all()
    assert (u.diff() >= 0).all()
    torch.testing.assert_close(slope, torch.sigmoid(level - r.detach()))
    assert slope[0].item() == pytest.approx(1, abs=1e-12)
    assert slope[-1].item() == pytest.approx(0, abs=1e-12)


def test_log_sigmoid_is_an_and():
    """exp(u) = P(good in a) P(good in b): one bad reward spoils it, however good the other."""
    levels = {k: torch.zeros(4, dtype=torch.float64) for k in "ab"}
    both, one, other, none = LogSigmoid()(
        members([9.0, 9.0, -9.0, -9.0], [9.0, -9.0, 9.0, -9.0], levels=levels)
    ).exp()
    s = 1 / (1 + math.exp(-9))
    assert [both.item(), one.item(), none.item()] == pytest.approx([s * s, s * (1 - s), (1 - s) ** 2])
    assert one == other < 0.01 < both
    good_enough = members([2.0, 20.0], [-1.0, -1.0], levels={k: v[:2] for k, v in levels.items()})
    assert LogSigmoid()(good_enough).diff().item() < 0.2  # ten times the score, and nearly nothing gained


@pytest.mark.parametrize("name", sorted(COMBINERS))
def test_gradients_reach_every_reward_that_decides(name):
    more = {"constraints": ["b >= 0.5"], "start": 2.0} if name == "lagrangian" else {}
    rows = [torch.tensor([0.1, 0.9, 0.5], dtype=torch.float64, requires_grad=True) for _ in range(3)]
    shifted = [row + shift for row, shift in zip(rows, (0.0, 0.2, -0.3), strict=True)]
    m = members(*shifted, levels=dict.fromkeys("abc", torch.zeros(3, dtype=torch.float64)))
    COMBINERS[name](**more)(m).sum().backward()
    reached = [row.grad is not None and bool((row.grad != 0).all()) for row in rows]
    expected = {"min": [False, False, True], "median": [True, False, False]}
    assert reached == expected.get(name, [True, True, True])


@pytest.mark.parametrize("combiner", ENSEMBLES, ids=lambda c: type(c).__name__)
def test_gradients_are_finite_where_members_agree(combiner):
    row = torch.ones(2, dtype=torch.float64, requires_grad=True)
    combiner(members(row, row * 1, row * 1)).sum().backward()
    assert row.grad is not None
    torch.testing.assert_close(row.grad, torch.ones_like(row))


# -- constraints ------------------------------------------------------------------------------


def settle(method: Lagrangian, rounds: int = 600, step: float = 0.1) -> tuple[float, dict[str, float]]:
    """Gradient ascent on x for r_0 = -x², r_1 = x, and dual ascent after every step: (x, multipliers)."""
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(rounds):
        (slope,) = torch.autograd.grad(method(members(-(x**2), x)).sum(), x)
        with torch.no_grad():
            x += step * slope
        method.observe({"a": -(x.item() ** 2), "b": x.item()}, lambda label, raw: raw)
    return x.item(), method.multipliers


@pytest.mark.parametrize(
    ("constraint", "x", "multiplier"),
    [
        ("b >= 1", 1.0, 2.0),  # stationarity: -2x + μ = 0
        ("b <= -0.5", -0.5, 1.0),
        ("b == 1", 1.0, 2.0),
        ("b == -1", -1.0, -2.0),
        ("b >= -1", 0.0, 0.0),  # satisfied by the optimum: slack, so μ = 0
        ("b <= 3", 0.0, 0.0),
    ],
)
def test_constraints_settle_at_the_kkt_point(constraint, x, multiplier):
    found, multipliers = settle(Lagrangian([constraint], rate=0.1, start=0.5))
    assert found == pytest.approx(x, abs=1e-3)
    assert multipliers == pytest.approx({str(Constraint.parse(constraint)): multiplier}, abs=2e-3)


def test_a_bandit_keeps_its_constraint_by_mixing():
    """Arms (1, 0) and (0, 1), policy p ∝ exp(r̃ / τ): E[r_1] = 3/4 asks for μ = 1 + τ log 3."""
    method, temperature = Lagrangian(["b >= 0.75"], rate=0.3), 0.5
    arms = members([1.0, 0.0], [0.0, 1.0])
    for _ in range(300):
        p = (method(arms) / temperature).softmax(0).tolist()
        method.observe({"a": p[0], "b": p[1]}, lambda label, raw: raw)
    assert p[1] == pytest.approx(0.75, abs=1e-4)
    assert method.multipliers["b >= 0.75"] == pytest.approx(1 + temperature * math.log(3), abs=1e-3)


def test_multipliers_stay_bounded():
    for relation, mean in ((">=", -9.0), ("==", -9.0), ("<=", 9.0)):
        method = Lagrangian([f"b {relation} 0"], rate=5.0, cap=3.0)
        for _ in range(50):
            method.observe({"a": 0.0, "b": mean}, lambda label, raw: raw)
        assert 2.99 <= method.multipliers[f"b {relation} 0"] <= 3.0


def test_the_running_mean_forgets():
    method = Lagrangian(["b >= 0"], rate=1.0, memory=0.75)
    for mean in (-1.0, 3.0):
        method.observe({"a": 0.0, "b": mean}, lambda label, raw: raw)
    assert method.multipliers["b >= 0"] == pytest.approx(1.0)  # 0 + 1, then the mean is exactly 0
    assert method.means["b"] == pytest.approx(-0.75 + 0.75)


def test_bounds_are_in_the_rewards_own_unit():
    method = Lagrangian(["b >= 0.25"], start=1.0)
    scaled = members([0.0], [1.0], unit=lambda label, raw: (raw - 0.05) / 0.1)  # 0.15 raw: short by one sd
    assert method(scaled).item() == pytest.approx(-1.0)


def test_state_goes_on_bit_for_bit():
    one, other = Lagrangian(["b >= 0.1"], rate=0.3), Lagrangian(["b >= 0.1"], rate=0.3)
    one.observe({"a": 0.1, "b": 0.07}, lambda label, raw: raw)
    other.load_state_dict(one.state_dict())
    for method in (one, other):
        method.observe({"a": 0.2, "b": 0.13}, lambda label, raw: raw)
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("emoji_clip >= 0.25", Constraint("emoji_clip", ">=", 0.25)),
        (" a<=-1e-3 ", Constraint("a", "<=", -1e-3)),
        ("a == .5", Constraint("a", "==", 0.5)),
    ],
)
def test_constraints_are_read_from_text(text, expected):
    assert Constraint.parse(text) == expected
    assert Constraint.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["a > 1", "a = 1", ">= 1", "a >= b", "a >= 1 and b >= 2", "a >="])
def test_what_is_no_constraint_is_named(text):
    with pytest.raises(ValueError, match="is not a constraint; write LABEL >= NUMBER"):
        Constraint.parse(text)
