"""Learning signals from rewards, against hand-computed values."""

import torch

from diffalign.credit import (
    PromptTracker,
    extremes,
    groups,
    leave_one_out,
    pairs,
    prefer,
    standardize,
    win_rates,
)

GROUP = torch.tensor([3, 3, 3, 1, 1])
REWARD = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0])


def test_groups_keep_their_order():
    assert [rows.tolist() for rows in groups(GROUP)] == [[0, 1, 2], [3, 4]]
    assert pairs(GROUP).tolist() == [[0, 1], [0, 2], [1, 2], [3, 4]]


def test_leave_one_out():
    torch.testing.assert_close(leave_one_out(REWARD, GROUP), torch.tensor([-3.0, -1.5, 4.5, 0.0, 0.0]))


def test_win_rates_add_up_to_half_the_group():
    rates = win_rates(REWARD, GROUP)
    torch.testing.assert_close(rates, torch.tensor([0.0, 0.5, 1.0, 0.5, 0.5]))
    assert float(rates[:3].sum()) == 1.5


def test_extremes_are_the_best_and_the_worst_of_each_group():
    reward, group = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 0.0, 9.0]), torch.tensor([0, 0, 0, 0, 0, 1, 1])
    assert extremes(reward, group, 1).tolist() == [1, 3, 5, 6]
    assert extremes(reward, group, 2).tolist() == [1, 2, 3, 4, 5, 6]
    assert extremes(reward, group, 9).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_standardize():
    out = standardize(REWARD)
    assert abs(float(out.mean())) < 1e-6
    assert abs(float(out.std(correction=0)) - 1) < 1e-6


def test_preferences_by_pareto_dominance():
    values = torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, 5.0], [1.0, 1.0]])
    first, second = torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0, 2, 3])
    assert prefer(values, first, second, "hard", torch.Generator()).tolist() == [-1, 1, 0, 0]


def test_bradley_terry_labels_have_the_right_frequency():
    values = torch.tensor([[1.0], [0.0]])
    first = torch.zeros(20_000, dtype=torch.long)
    labels = prefer(values, first, first + 1, "bradley_terry", torch.Generator().manual_seed(0))
    assert abs(float((labels > 0).float().mean()) - torch.tensor(1.0).sigmoid()) < 0.012


def test_tracker_uses_the_batch_until_a_prompt_is_known():
    tracker = PromptTracker(buffer=3, minimum=3)
    first = tracker(["a", "a", "b"], torch.tensor([1.0, 3.0, 5.0]))
    torch.testing.assert_close(first, standardize(torch.tensor([1.0, 3.0, 5.0])), atol=1e-5, rtol=0)
    second = tracker(["a", "b"], torch.tensor([5.0, 5.0]))
    own = torch.tensor([1.0, 3.0, 5.0])
    assert abs(float(second[0] - (5 - own.mean()) / own.std(correction=0))) < 1e-5


def test_tracker_forgets_old_rewards_and_survives_a_checkpoint():
    tracker = PromptTracker(buffer=2, minimum=1)
    tracker(["a"] * 3, torch.tensor([9.0, 1.0, 2.0]))
    other = PromptTracker(buffer=2, minimum=1)
    other.load_state_dict(tracker.state_dict())
    assert other.state_dict() == {"a": [1.0, 2.0]}
    reward = torch.tensor([4.0])
    torch.testing.assert_close(other(["a"], reward), tracker(["a"], reward))
