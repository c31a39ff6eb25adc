"""The loop: the same sample gets the same noise whatever is beside it."""

from __future__ import annotations

import pytest
import torch
from toys import Chain, ChainPolicy, Cond

from diffalign.errors import DiffalignError
from diffalign.seeds import normal
from diffalign.walk import Step, fork, log_prob, rescore, rollout, step, walk

RULE = Chain(a=(0.9, 0.8, 1.1), sigma=(0.5, 0.0, 0.4))


def sample(policy, n=6, batch=6):
    seeds = list(range(n))
    return rollout(policy, RULE, ["p"] * n, seeds, noise_seeds=seeds, group=[0] * n, batch=batch)


def test_samples_do_not_depend_on_the_batch():
    policy = ChainPolicy(3, 4)
    torch.testing.assert_close(sample(policy, batch=6).states, sample(policy, batch=4).states, rtol=0, atol=0)
    torch.testing.assert_close(sample(policy, n=3).states, sample(policy, n=6).states[:3], rtol=0, atol=0)


def test_normal_depends_on_the_seed_alone():
    assert torch.equal(normal([3, 5], (2, 2))[1], normal([5], (2, 2))[0])
    assert not torch.equal(*normal([3, 5], (2, 2)))


def test_deterministic_steps_have_no_log_prob():
    batch = sample(ChainPolicy(3, 4))
    assert batch.live.tolist() == [0, 2]
    assert batch.log_probs.isnan().any(0).tolist() == [False, True, False]
    with pytest.raises(DiffalignError, match="std 0"):
        log_prob(ChainPolicy(3, 4), batch, torch.tensor([0]), torch.tensor([1]))


def test_samples_at_different_levels_share_a_step():
    policy = ChainPolicy(3, 4)
    batch = sample(policy, n=2)
    i = torch.tensor([0, 2])
    mixed = step(policy, RULE, policy.grid, batch.states[[0, 1], i], i, Cond(2), batch.seeds)
    torch.testing.assert_close(mixed.next, batch.states[[0, 1], i + 1], rtol=0, atol=0)


def test_walk_goes_on_with_the_samples_it_is_sent():
    policy = ChainPolicy(3, 4)
    path = walk(policy, RULE, policy.noise([1, 2]), Cond(2), [1, 2])
    first = next(path)
    second = path.send(torch.tensor([1, 1]))
    assert torch.equal(second.x[0], first.next[1])
    assert torch.equal(second.x[1], first.next[1])
    third = next(path)
    assert not torch.equal(third.next[0], third.next[1]), "copies of one sample must part"


def test_a_step_is_drawn_again_from_chosen_samples():
    policy = ChainPolicy(3, 4)
    x, i, seeds = policy.noise([1, 2]), torch.tensor([0, 2]), [7, 8]
    parts = [
        step(policy, RULE, policy.grid, x[k : k + 1], i[k : k + 1], Cond(1), seeds[k : k + 1]) for k in (0, 1)
    ]
    both = Step.cat(parts)
    assert torch.equal(both.redrawn(torch.tensor([0, 1]), seeds), both.next)
    copies = both.redrawn(torch.tensor([1, 1]), seeds)
    assert torch.equal(copies[1], both.next[1])
    assert not torch.equal(*copies), "copies of one sample must part"


def test_forked_seeds_do_not_depend_on_the_place():
    assert fork([7, 8], [0, 1]) == [7, 8]
    assert fork([7, 8], [1, 1])[0] == 8
    assert fork([7, 8], [1, 1, 0])[1] == fork([7, 8], [0, 1, 1])[2]


def test_another_guidance_scale_is_refused():
    policy = ChainPolicy(3, 4)
    batch = sample(policy)
    policy.guidance_scale = 5.0
    with pytest.raises(DiffalignError, match=r"guidance scale None, the policy now has 5\.0"):
        rescore(policy, batch, torch.tensor([0]), torch.tensor([0]))
