"""Batch arithmetic: who gets which prompts, and what goes through the denoiser together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from toys import Chain, ChainPolicy

from diffalign.errors import DiffalignError
from diffalign.run import Batching, Run

RULE = Chain(a=(0.9, 0.8), sigma=(0.5, 0.4))


def make(batching: Batching, prompts=("a", "b", "c"), rank=0, count=1) -> Run:
    run = Run(ChainPolicy(2, 3), RULE, lambda x, p: x.sum(1), list(prompts), batching)
    run.accelerator = SimpleNamespace(
        process_index=rank, num_processes=count, device="cpu", gather=lambda x: x, is_main_process=True
    )
    return run


def test_every_process_gets_its_share_of_every_update():
    batching = Batching(prompts_per_round=8, images_per_prompt=1, updates_per_round=2)
    whole = make(batching).draw()
    parts = [make(batching, rank=r, count=2).draw() for r in (0, 1)]
    assert sorted(parts[0] + parts[1]) == whole
    assert [g for g, _ in parts[0]] == [0, 1, 4, 5]
    assert [g for g, _ in parts[1]] == [2, 3, 6, 7]


def test_an_epoch_shows_every_prompt_once():
    run = make(Batching(prompts_per_round=3, images_per_prompt=1))
    for run.round in range(4):
        assert sorted(prompt for _, prompt in run.draw()) == ["a", "b", "c"]


def test_arithmetic_that_does_not_divide_is_refused():
    with pytest.raises(DiffalignError, match=r"prompts_per_round = 6 .* Make it a multiple of 4"):
        Batching(6, 2, updates_per_round=2).check(processes=2)


def test_cells_cover_every_member_and_step_once():
    run = make(Batching(2, 3, micro_batch=7))
    batch = run.sample()
    members = torch.arange(6).reshape(2, 3)
    pieces = list(run.cells(batch, members))
    assert all(rows.shape == cols.shape and rows.numel() <= 7 for rows, cols in pieces)
    seen = [
        (int(r), int(c)) for rows, cols in pieces for r, c in zip(rows.flatten(), cols.flatten(), strict=True)
    ]
    assert sorted(seen) == [(r, c) for r in range(6) for c in range(2)]


def test_samples_that_go_together_are_not_squeezed_into_a_smaller_micro_batch():
    run = make(Batching(2, 3, micro_batch=2))
    with pytest.raises(DiffalignError, match="micro_batch = 2 is smaller than the 3 samples"):
        next(run.cells(run.sample(), torch.arange(6).reshape(2, 3)))


def test_shared_noise_is_shared_within_a_prompt_only():
    batch = make(Batching(2, 3)).sample(share_noise=True)
    first = batch.states[:, 0].reshape(2, 3, -1)
    assert torch.equal(first[:, 0], first[:, 2])
    assert not torch.equal(first[0], first[1])


def test_split_keeps_prompts_whole():
    run = make(Batching(4, 2, updates_per_round=2))
    assert [part.group.tolist() for part in run.split(run.sample())] == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_kl_is_exact_for_a_shifted_policy():
    run = make(Batching(2, 2))
    with torch.no_grad():
        run.policy.delta.fill_(0.1)
    expected = 3 * 0.1**2 / 2 * (1 / 0.5**2 + 1 / 0.4**2)
    torch.testing.assert_close(run.kl(run.sample()), torch.full((4,), expected))
