"""Noise-aware guidance: exact on Gaussians, for every prediction target, diffusion and flow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from diffalign.errors import DiffalignError, RunError
from diffalign.grid import Grid
from diffalign.guided import Guided
from diffalign.mixed import Mixed
from diffalign.search.best_of_n import BestOfN
from diffalign.search.nrg import NRG
from diffalign.steps import DDIM, ODE

from .gaussian import GaussianPolicy, flow, reached, vp

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, VAR = 0.3, 0.6
"""The data: N(MEAN, VAR)."""
SEEN, BLUR = 1.2, 0.5
"""The reward: log N(SEEN; x_0, BLUR), as if SEEN had been measured."""
POSTERIOR = (MEAN / VAR + SEEN / BLUR) / (1 / VAR + 1 / BLUR), 1 / (1 / VAR + 1 / BLUR)
GRIDS = {target: vp(50, target) for target in ("epsilon", "v_prediction", "sample")} | {"flow": flow(50)}


def score_noisy(latents, prompts, signal, noise):
    """log p(SEEN | x_t), up to a constant: x_0 given x_t is Gaussian, so SEEN is."""
    a, s = (level[:, None].to(latents.dtype) for level in (signal, noise))
    gain = VAR * a / (a * a * VAR + s * s)
    mean, var = MEAN + gain * (latents - a * MEAN), VAR - gain * a * VAR + BLUR
    return (-(SEEN - mean).square() / (2 * var)).sum(1)


LIKELIHOOD = SimpleNamespace(score_noisy=score_noisy)


def guided(grid: Grid, w: float = 1.0) -> Guided:
    return Guided(GaussianPolicy(grid, MEAN, VAR), LIKELIHOOD, w)


def predicted(policy, x, i):
    return policy.predict(x, policy.grid.time(i), policy.encode(["a"] * len(x)))


@pytest.mark.parametrize("name", GRIDS)
def test_the_guided_output_is_that_of_the_posterior_at_every_level(name):
    grid = GRIDS[name]
    i = torch.arange(grid.steps)
    x = torch.randn(grid.steps, 3, generator=torch.Generator().manual_seed(0))
    found = predicted(guided(grid), x, i)
    expected = predicted(GaussianPolicy(grid, *POSTERIOR), x, i)
    acts = grid.signal[:-1] >= 1e-3
    torch.testing.assert_close(found[acts], expected[acts], rtol=1e-4, atol=1e-4)
    unguided = predicted(GaussianPolicy(grid, MEAN, VAR), x, i)
    assert float((found[acts] - unguided[acts]).abs().mean()) > 0.05


@pytest.mark.parametrize(("grid", "rule"), [(vp(1000), DDIM()), (vp(1000), ODE()), (flow(1000), ODE())])
def test_samples_are_those_of_the_posterior(grid, rule):
    """To the error of 1,000 steps, which the posterior's own denoiser shares."""
    found = reached(guided(grid), rule)
    assert found == (pytest.approx(POSTERIOR[0], abs=5e-3), pytest.approx(POSTERIOR[1], abs=5e-3))
    own = reached(GaussianPolicy(grid, *POSTERIOR), rule)
    assert found == (pytest.approx(own[0], abs=2e-3), pytest.approx(own[1], abs=2e-3))


@pytest.mark.parametrize("name", GRIDS)
def test_a_steered_output_moves_eps_by_noise_and_x0_by_noise_squared_over_signal(name):
    """Written out from the score -eps / noise; v - t / (1 - t) grad r is the flow's case."""
    grid, i = GRIDS[name], torch.tensor([10, 40])
    output, x, slope = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    a, s = grid.level(i, x)
    before, after = grid.x0_eps(output, x, i), grid.x0_eps(grid.steered(output, slope, i), x, i)
    torch.testing.assert_close(after[1] - before[1], -s * slope, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after[0] - before[0], s * s / a * slope, rtol=1e-4, atol=1e-4)
    if grid.flow:
        torch.testing.assert_close(grid.steered(output, slope, i), output - s / (1 - s) * slope)


def test_the_first_level_of_a_flow_is_left_alone_and_costs_no_gradient():
    grid = flow(4)
    x = torch.randn(2, 3)
    plain = GaussianPolicy(grid, MEAN, VAR)
    assert torch.equal(
        predicted(guided(grid), x, torch.tensor([0, 0])), predicted(plain, x, torch.tensor([0, 0]))
    )
    found = NRG(LIKELIHOOD, 1.0)(plain, ["a", "b"], lambda x, p: -x.square().sum(1), rule=ODE())
    assert [(cost.denoiser_calls, cost.gradients) for cost in found.costs] == [(4, 3)] * 2
    mixed_depths = predicted(guided(grid), x, torch.tensor([0, 2]))
    assert torch.equal(mixed_depths[1:], predicted(guided(grid), x[1:], torch.tensor([2])))


def test_weights_scale_the_gradient_and_rewards_add_up():
    grid, i = GRIDS["epsilon"], torch.tensor([20])
    x = torch.randn(1, 3)
    base = predicted(GaussianPolicy(grid, MEAN, VAR), x, i)
    twice = predicted(guided(grid, 2.0), x, i) - base
    torch.testing.assert_close(twice, 2 * (predicted(guided(grid), x, i) - base), rtol=1e-4, atol=1e-6)
    both = Guided(guided(grid, 0.5), LIKELIHOOD, 1.5)
    torch.testing.assert_close(predicted(both, x, i) - base, twice, rtol=1e-4, atol=1e-6)
    assert torch.equal(predicted(guided(grid, 0.0), x, i), base)


def test_guidance_and_mixing_go_together():
    grid, i, x = GRIDS["epsilon"], torch.tensor([20]), torch.randn(1, 3)
    policy = GaussianPolicy(grid, MEAN, VAR)
    one, other = Guided(Mixed(policy, 2.0), LIKELIHOOD, 1.0), Mixed(Guided(policy, LIKELIHOOD, 1.0), 2.0)
    torch.testing.assert_close(predicted(one, x, i), predicted(other, x, i))
    assert (one.costs(i)["denoiser_calls"], one.costs(i)["gradients"]) == (2, 1)
    assert (other.costs(i)["denoiser_calls"], other.costs(i)["gradients"]) == (2, 2)


def test_one_can_search_with_guidance_and_differentiate_through_it():
    policy = guided(GRIDS["epsilon"])
    found = BestOfN(3)(policy, ["a", "b"], lambda x, p: -(x - SEEN).square().sum(1))
    assert found.costs[0].denoiser_calls == found.costs[0].gradients == 3 * 50
    x = torch.randn(1, 3, requires_grad=True)
    output = predicted(policy, x, torch.tensor([20]))
    (slope,) = torch.autograd.grad(output.sum(), x)
    exact = predicted(GaussianPolicy(policy.grid, *POSTERIOR), x, torch.tensor([20]))
    torch.testing.assert_close(slope, torch.autograd.grad(exact.sum(), x)[0], rtol=1e-4, atol=1e-4)


class Likes:
    """A reward of pictures: log N(SEEN; x_0, BLUR)."""

    differentiable = True

    def __call__(self, images, prompts):
        return (-(SEEN - images).square() / (2 * BLUR)).sum(1)


def test_a_reward_of_pictures_is_refused_or_asked_about_decoded_guesses_which_is_biased():
    """Asked about E[x_0 | x_t] it ignores what is still open: its samples are sharper than the posterior."""
    policy = GaussianPolicy(vp(1000), MEAN, VAR)
    with pytest.raises(DiffalignError, match=r"Likes judges finished pictures.*decoded=True"):
        Guided(policy, Likes(), 1.0)
    found = reached(Guided(policy, Likes(), 1.0, decoded=True), DDIM())
    assert abs(found[0] - POSTERIOR[0]) > 0.02
    assert found[1] < POSTERIOR[1] - 0.02
    costs = NRG(Likes(), decoded=True)(GaussianPolicy(flow(4), MEAN, VAR), ["a"], Likes(), rule=ODE()).costs[
        0
    ]
    assert (costs.denoiser_calls, costs.gradients, costs.reward_calls) == (4, 3, 4)


def test_rewards_that_cannot_guide_are_refused():
    policy, i, x = GaussianPolicy(vp(10), MEAN, VAR), torch.tensor([3]), torch.zeros(1, 3)
    with pytest.raises(DiffalignError, match="not differentiable"):
        Guided(policy, lambda images, prompts: images.sum(1), 1.0, decoded=True)
    flat = SimpleNamespace(score_noisy=lambda latents, prompts, signal, noise: torch.zeros(len(latents)))
    with pytest.raises(DiffalignError, match="no gradient came back"):
        predicted(Guided(policy, flat, 1.0), x, i)
    wrong = SimpleNamespace(score_noisy=lambda latents, prompts, signal, noise: latents)
    with pytest.raises(RunError, match=r"shape \(1, 3\).*shape \(1,\)"):
        predicted(Guided(policy, wrong, 1.0), x, i)
