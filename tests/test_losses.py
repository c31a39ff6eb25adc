"""The losses by hand, and what the clips let through once the weights have moved away from the rollout's."""

from __future__ import annotations

import math

import pytest
import torch
from toys import Chain, ChainPolicy

from diffalign.algorithms.d3po import D3PO
from diffalign.algorithms.ddpo import DDPO
from diffalign.algorithms.prdp import PRDP
from diffalign.losses import clip_ratio, policy_gradient, reward_difference
from diffalign.run import Batching, Run

RULE = Chain(a=(0.9, 0.8, 1.1), sigma=(0.5, 0.3, 0.4))


def moved(algorithm, by: float, pictures: int = 4):
    """A round's batch of an algorithm, and the policy after its weights have moved."""
    policy = ChainPolicy(3, 2)
    run = Run(
        policy, RULE, lambda x, prompts: x.sum(1), ["a", "b"],
        Batching(2, pictures, micro_batch=6, sample_batch=5),
    )  # fmt: skip
    batch = algorithm.collect(run)
    with torch.no_grad():
        policy.delta.copy_(by * torch.randn(3, 2))
    run.update = 1
    return policy, run, batch


def every(batch):
    rows, cols = torch.meshgrid(torch.arange(len(batch)), torch.arange(batch.steps), indexing="ij")
    return rows.flatten(), cols.flatten()


def gradient(policy, losses):
    policy.delta.grad = None
    for loss in losses:
        loss.backward()
    return policy.delta.grad.clone()


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [(2.0, 1.5, -2.4, 0.0), (2.0, 0.5, -1.0, -1.0), (-2.0, 1.5, 3.0, 3.0), (-2.0, 0.5, 1.6, 0.0)],
)
def test_policy_gradient_keeps_the_worse_of_the_ratio_and_the_clipped_one(advantage, ratio, loss, slope):
    """c = 0.2; the slope is d loss / d log-prob = -A R where the clip does not hold."""
    now = torch.tensor([math.log(ratio)], requires_grad=True)
    found = policy_gradient(now, torch.zeros(1), torch.tensor([advantage]), 0.2)
    found.sum().backward()
    assert float(found.detach()) == pytest.approx(loss, abs=1e-6)
    assert float(now.grad) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(("ratio", "loss", "slope"), [(2.5, 1.0, 0.0), (5.0, 9.0, 6.0)])
def test_reward_difference_takes_the_larger_square_of_each_pair(ratio, loss, slope):
    """Rewards 2 apart at beta 1, the first log ratio clipped at 1: max((r - 2)^2, (min(r, 1) - 2)^2)."""
    first = torch.tensor(ratio, requires_grad=True)
    log_ratio = torch.stack([first, torch.zeros(())])
    pair = torch.tensor([[0, 1]])
    found = reward_difference(log_ratio, log_ratio.clamp(max=1), torch.tensor([2.0, 0.0]), 1.0, pair)
    found.backward()
    assert (float(found.detach()), float(first.grad)) == (loss, slope)


def test_clip_ratio_bounds_and_stops_the_gradient():
    x = torch.tensor([-1.0, 0.05, 1.0], requires_grad=True)
    found = clip_ratio(x, 0.1)
    found.sum().backward()
    torch.testing.assert_close(found.detach(), torch.tensor([math.log(0.9), 0.05, math.log(1.1)]))
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 0.0]))


def test_ddpo_trains_only_on_what_the_clip_leaves():
    clip = 0.05
    ddpo = DDPO(advantage="leave_one_out", clip_range_mean=clip)
    policy, run, batch = moved(ddpo, 0.1)
    found = gradient(policy, ddpo.losses(run, batch))
    rows, cols = every(batch)
    now = run.log_prob(batch, rows, cols) / batch.dim
    ratio = (now - batch.log_probs[rows, cols] / batch.dim).exp().detach()
    advantage = batch.advantages[rows]
    free = torch.where(advantage > 0, ratio < 1 + clip, ratio > 1 - clip)
    assert 0.1 < float(free.float().mean()) < 0.9
    (wanted,) = torch.autograd.grad((-advantage * ratio * free * now).mean(), policy.delta)
    torch.testing.assert_close(found, wanted)


def test_prdp_in_two_passes_is_the_gradient_of_its_clipped_loss():
    prdp = PRDP(beta_nats=1.0, clip_mean=0.1)
    policy, run, batch = moved(prdp, 0.1)
    found = gradient(policy, prdp.losses(run, batch))
    rows, cols = every(batch)
    now = run.log_prob(batch, rows, cols).reshape(len(batch), -1)
    (wanted,) = torch.autograd.grad(prdp.objective(run, batch, now), policy.delta, retain_graph=True)
    torch.testing.assert_close(found, wanted)
    (free,) = torch.autograd.grad(PRDP(beta_nats=1.0, clip_mean=1e9).objective(run, batch, now), policy.delta)
    assert float((found - free).norm()) > 0.01 * float(free.norm())  # the clip does hold


def test_prdp_clips_each_step_around_the_rollout():
    """eps nats per dimension and step, so eps D steps for the trajectory."""
    prdp = PRDP(clip_mean=0.1)
    _, run, batch = moved(prdp, 5.0)
    rows, cols = every(batch)
    with torch.no_grad():
        now = run.log_prob(batch, rows, cols).reshape(len(batch), -1)
    assert bool(((now - batch.log_probs).abs() > 0.2).any())
    ratio = (now - batch.log_probs).clamp(-0.2, 0.2).sum(1)
    free = (now - batch.log_probs).sum(1)
    a, b = torch.combinations(torch.arange(4)).unbind(1)
    a, b = torch.cat([a, a + 4]), torch.cat([b, b + 4])
    target = (batch.total[a] - batch.total[b]) / prdp.beta_nats
    wanted = torch.maximum((free[a] - free[b] - target) ** 2, (ratio[a] - ratio[b] - target) ** 2).mean()
    torch.testing.assert_close(prdp.objective(run, batch, now), wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("pictures", [2, 4])
def test_published_d3po_by_hand(pictures):
    d3po = D3PO(mode="paper_code", beta=0.5, clip=0.1)
    _, run, batch = moved(d3po, 0.1, pictures)
    rows, cols = every(batch)
    with torch.no_grad():
        total = sum(float(loss) for loss in d3po.losses(run, batch))
        ratio = (run.log_prob(batch, rows, cols) - batch.reference_log_probs[rows, cols]) / 2
    log_q = ratio.exp().clamp(0.9, 1.1).log().reshape(2, pictures, 3)
    reward = batch.total.reshape(2, pictures)
    each = [
        -torch.nn.functional.logsigmoid(0.5 * torch.sign(reward[g, a] - reward[g, b]) * (log_q[g, a] - log_q[g, b]))
        for g in range(2)
        for a in range(pictures)
        for b in range(a)
    ]  # fmt: skip
    assert total == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_published_d3po_learns_nothing_outside_its_clip():
    d3po = D3PO(mode="paper_code", clip=1e-6)
    policy, run, batch = moved(d3po, 1.0)
    assert float(gradient(policy, d3po.losses(run, batch)).abs().max()) == 0


def test_the_previous_round_as_reference_is_the_rollout_itself():
    d3po = D3PO(reference="previous_round")
    policy, run, batch = moved(d3po, 0.0)
    assert policy.denoiser_calls == 8 * 3 + 4 * 2 * 3  # the rollout and the KL of four samples
    assert sum(loss.item() for loss in d3po.losses(run, batch)) == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("algorithm", [D3PO(keep=1), PRDP(keep=1), DDPO(keep=1)])
def test_keep_trains_on_the_best_and_the_worst_of_each_prompt(algorithm):
    _, run, batch = moved(algorithm, 0.0, pictures=6)
    sampled = run.sample(share_noise=isinstance(algorithm, D3PO)).total.reshape(2, 6)
    kept = batch.total.reshape(2, 2)
    torch.testing.assert_close(kept.min(1).values, sampled.min(1).values)
    torch.testing.assert_close(kept.max(1).values, sampled.max(1).values)


@pytest.mark.parametrize(("algorithm", "pictures"), [(D3PO(), 3), (D3PO(), 6), (PRDP(), 3), (PRDP(), 6)])
def test_cost_is_linear_in_the_pictures(algorithm, pictures):
    """One rollout, the reference once, the KL of four samples, and one pass of an update."""
    policy, run, batch = moved(algorithm, 0.0, pictures)
    run.update, before = 0, policy.denoiser_calls
    assert before == 3 * (2 * pictures * 2 + 2 * 4)
    for _ in algorithm.losses(run, batch):
        pass
    assert policy.denoiser_calls - before == 3 * 2 * pictures


def test_no_pass_of_prdp_is_larger_than_a_micro_batch(monkeypatch):
    prdp = PRDP()
    policy, run, batch = moved(prdp, 0.1, pictures=8)
    sizes, predict = [], policy.predict
    monkeypatch.setattr(policy, "predict", lambda x, t, cond: sizes.append(len(x)) or predict(x, t, cond))
    gradient(policy, prdp.losses(run, batch))
    assert max(sizes) == 6
