"""Closed forms that the algorithms must reach: linear-Gaussian chains and gradient identities."""

from __future__ import annotations

import torch
from toys import Chain, ChainPolicy, train

from diffalign.algorithms.d3po import D3PO
from diffalign.algorithms.ddpo import DDPO
from diffalign.algorithms.prdp import PRDP
from diffalign.losses import clip_ratio, policy_gradient, preference, reward_difference
from diffalign.run import Batching, Run

RULE = Chain(a=(0.9, 0.8, 1.1), sigma=(0.5, 0.3, 0.4))
DIRECTION = torch.tensor([1.0, -0.5])


def reward(samples, prompts):
    return samples @ DIRECTION


def optimum(rule: Chain, beta: float) -> torch.Tensor:
    """delta_k = sigma_k^2 M_k a / beta."""
    scale = torch.tensor([s * s * m for s, m in zip(rule.sigma, rule.gains, strict=True)])
    return scale[:, None] * DIRECTION / beta


def rollout_at(delta: torch.Tensor, **sizes: int):
    policy = ChainPolicy(len(RULE.a), 2)
    run = Run(policy, RULE, reward, ["a", "b"], Batching(micro_batch=7, sample_batch=5, **sizes))
    batch = PRDP().collect(run)
    with torch.no_grad():
        policy.delta.copy_(delta)
    run.update = 1
    return policy, run, batch


def test_prdp_gradient_is_leave_one_out_reinforce():
    """Gradient of the unclipped loss = -(4 / beta) RLOO of r - beta * log ratio (issue row 1)."""
    beta, n = 0.7, 6
    policy, run, batch = rollout_at(0.1 * torch.randn(3, 2), prompts_per_round=2, images_per_prompt=n)
    for loss in PRDP(beta_nats=beta, clip_mean=1e9).losses(run, batch):
        loss.backward()
    found = policy.delta.grad.clone()
    rows, cols = (
        grid.flatten() for grid in torch.meshgrid(torch.arange(2 * n), torch.arange(3), indexing="ij")
    )
    now = run.log_prob(batch, rows, cols).reshape(2 * n, 3).sum(1)
    value = (batch.total - beta * (now - batch.reference_log_probs.sum(1))).detach().reshape(2, n)
    advantage = (value - value.mean(1, keepdim=True)) * n / (n - 1)
    (rloo,) = torch.autograd.grad((advantage.flatten() * now).mean(), policy.delta)
    torch.testing.assert_close(found, -(4 / beta) * rloo, rtol=1e-4, atol=1e-5)


def test_pairwise_gradients_are_collinear():
    """DPO-type and reward-difference gradients of one pair point along g_a - g_b (row 2)."""
    weights = torch.randn(5, requires_grad=True)
    features = torch.randn(2, 5)
    ratio = features @ weights
    (dpo,) = torch.autograd.grad(
        preference(ratio[0], ratio[1], torch.tensor(1.0), 0.3), weights, retain_graph=True
    )
    rewards = torch.tensor([10.0, -10.0])
    (rdp,) = torch.autograd.grad(
        reward_difference(ratio, ratio, rewards, 0.3, torch.tensor([[0, 1]])), weights
    )
    assert torch.cosine_similarity(dpo, rdp, dim=0) > 1 - 1e-5
    assert torch.cosine_similarity(dpo, features[1] - features[0], dim=0).abs() > 1 - 1e-5


def test_reward_difference_loss_at_the_optimum():
    """0 with shared x_T, else the floor 2 Var(V) / beta^2 of the initial noise (row 3)."""
    beta, n = 0.5, 512
    delta = optimum(RULE, beta)
    for shared in (True, False):
        policy = ChainPolicy(3, 2)
        run = Run(policy, RULE, reward, ["a"], Batching(1, n, micro_batch=10**6, sample_batch=n))
        batch = PRDP(share_noise=shared).collect(run)
        with torch.no_grad():
            policy.delta.copy_(delta)
        prdp = PRDP(beta_nats=beta, clip_mean=1e9)
        loss = prdp.objective(run, batch, prdp._rescored(run, batch))
        gain = torch.tensor(RULE.a).prod()
        floor = 0.0 if shared else float(2 * (gain * DIRECTION).square().sum() / beta**2)
        assert abs(loss - floor) < (1e-6 if shared else 0.2 * floor)


def test_prdp_reaches_the_closed_form_optimum():
    policy = ChainPolicy(3, 2)
    train(
        policy,
        RULE,
        PRDP(beta_nats=2.0, clip_mean=1e9, share_noise=True, epochs=2),
        reward,
        rounds=150,
        lr=0.02,
        prompts_per_round=4,
        images_per_prompt=8,
    )
    torch.testing.assert_close(policy.delta.detach(), optimum(RULE, 2.0), rtol=0, atol=2e-3)


def test_ddpo_with_kl_reaches_the_closed_form_optimum():
    policy = ChainPolicy(3, 2)
    ddpo = DDPO(advantage="leave_one_out", advantage_clip=1e9, clip_range_mean=1e9, kl_weight=2.0)
    train(policy, RULE, ddpo, reward, rounds=200, lr=0.02, prompts_per_round=8, images_per_prompt=128)
    torch.testing.assert_close(policy.delta.detach(), optimum(RULE, 2.0), rtol=0, atol=0.012)


def test_d3po_recovers_reward_over_beta_on_one_step():
    """With shared x_T and Bradley-Terry labels: log ratio = r / beta, so delta = sigma^2 a / beta."""
    rule, policy = Chain(a=(0.9,), sigma=(0.8,)), ChainPolicy(1, 2)
    d3po = D3PO(mode="calibrated", beta=1.5, labels="bradley_terry")
    train(policy, rule, d3po, reward, rounds=300, lr=0.05, prompts_per_round=256, images_per_prompt=2)
    torch.testing.assert_close(policy.delta.detach(), optimum(rule, 1.5), rtol=0, atol=0.03)


def test_importance_sampling_gradient_is_the_score_function_gradient():
    """At the rollout's policy, the clipped surrogate's gradient is -A grad log p (row 5)."""
    log_prob = torch.randn(9, requires_grad=True)
    advantage = torch.randn(9)
    loss = policy_gradient(log_prob, log_prob.detach(), advantage, 1e-4).sum()
    (gradient,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(gradient, -advantage)


def test_published_d3po_logit_is_bounded():
    """|logit| <= beta (log 1.1 - log 0.9) = 0.0201 (row 6)."""
    ratio = torch.linspace(-5, 5, 101)
    logit = 0.1 * (clip_ratio(ratio, 0.1) - clip_ratio(-ratio, 0.1))
    assert abs(float(logit.max()) - 0.0200671) < 1e-6


def test_d3po_gradient_at_the_reference():
    """-(beta / 2)(grad log p_winner - grad log p_loser); zero for a tie; swapping changes nothing."""
    win, lose = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    one, beta = torch.ones(1), 0.3
    found = torch.autograd.grad(preference(win, lose, one, beta), [win, lose])
    torch.testing.assert_close(torch.cat(found), torch.tensor([-beta / 2, beta / 2]))
    assert float(torch.autograd.grad(preference(win, lose, 0 * one, beta), win)[0]) == 0
    a, b = torch.randn(2, 4)
    torch.testing.assert_close(preference(a, b, one, beta), preference(b, a, -one, beta))


def test_ratio_is_exactly_one_after_a_rollout():
    policy = ChainPolicy(3, 2)
    run = Run(policy, RULE, reward, ["a"], Batching(1, 8, micro_batch=8, sample_batch=8))
    batch = run.sample()
    for rows, cols in run.transitions(batch):
        torch.testing.assert_close(
            run.log_prob(batch, rows, cols), batch.log_probs[rows, cols], rtol=0, atol=0
        )
