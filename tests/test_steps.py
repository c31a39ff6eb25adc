"""Step rules against diffusers' schedulers, closed-form marginals and elementary statistics."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from diffalign.errors import DiffalignError
from diffalign.grid import Grid
from diffalign.steps import DDIM, ODE, Consistency, FlowSDE, Gaussian

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def vp(steps: int = 12, target: str = "epsilon") -> tuple[DDIMScheduler, Grid]:
    scheduler = DDIMScheduler(**BETAS, steps_offset=1, set_alpha_to_one=False, prediction_type=target)
    scheduler.set_timesteps(steps)
    return scheduler, Grid.vp(
        scheduler.timesteps, scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod), target
    )


def flow(steps: int) -> Grid:
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return Grid.from_sigmas(sigmas[:-1] * 1000, sigmas)


@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_diffusers_ddim_at_every_step(target, eta):
    scheduler, grid = vp(target=target)
    x, output, noise = torch.randn(3, 2, 4, 8, 8)
    for k, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(output, t, x, eta=eta, variance_noise=noise if eta else None).prev_sample
        ours = DDIM(eta)(output, x, grid, torch.full((2,), k)).sample(noise)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)  # 1 / noise is 30 at the last step


def test_ode_is_ddim_zero_and_euler():
    _, grid = vp()
    x, output = torch.randn(2, 2, 4, 8, 8)
    i = torch.tensor([3, 7])
    torch.testing.assert_close(ODE()(output, x, grid, i).mean, DDIM(0.0)(output, x, grid, i).mean)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    grid = Grid.from_sigmas(scheduler.timesteps, scheduler.sigmas)
    for k, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(output, t, x).prev_sample
        torch.testing.assert_close(
            ODE()(output, x, grid, torch.full((2,), k)).mean, theirs, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("steps", [1, 4])
def test_consistency_is_the_lcm_scheduler(steps):
    scheduler = LCMScheduler(**BETAS, original_inference_steps=50)
    scheduler.set_timesteps(steps)
    grid = Grid.vp(
        scheduler.timesteps, scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod), "epsilon"
    )
    x, output = torch.randn(2, 2, 4, 8, 8)
    for k, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(k)).prev_sample
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
        ours = Consistency()(output, x, grid, torch.full((2,), k)).sample(noise)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise_level", [0.3, 0.7])
def test_flow_sde_keeps_the_marginals(noise_level):
    """x0 ~ N(1, 0.25) with its exact velocity: the sample's variance tends to 0.25 (row 7)."""
    grid, x = flow(400), torch.randn(40_000, 1)
    rule = FlowSDE(noise_level)
    for k in range(grid.steps):
        i = torch.full((len(x),), k)
        a, s = grid.level(i, x)
        var = 0.25 * a**2 + s**2
        x0 = 1 + 0.25 * a / var * (x - a)
        eps = s / var * (x - a)
        x = rule(eps - x0, x, grid, i).sample(torch.randn_like(x))
    assert abs(float(x.mean()) - 1) < 0.012
    assert abs(float(x.var()) - 0.25) < 0.008


def test_flow_sde_at_the_first_step_uses_the_next_level():
    """Flow-GRPO's g at t = 1 divides by 1 - t_1."""
    grid = flow(10)
    expected = 0.7 * (1 / (1 - 0.9)) ** 0.5 * 0.1**0.5
    assert abs(float(FlowSDE(0.7).std(grid)[0]) - expected) < 1e-12


def test_gaussian_matches_torch_distributions():
    mean, other, x = torch.randn(3, 5, 4, 3)
    std = torch.rand(5, 1, 1) + 0.5
    ours, theirs = Gaussian(mean, std), torch.distributions.Normal(mean, std.expand_as(mean))
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x).flatten(1).sum(1))
    kl = torch.distributions.kl_divergence(theirs, torch.distributions.Normal(other, std.expand_as(mean)))
    torch.testing.assert_close(ours.kl(Gaussian(other, std)), kl.flatten(1).sum(1))


def test_a_deterministic_step_has_no_log_prob():
    with pytest.raises(DiffalignError, match="std 0"):
        Gaussian(torch.zeros(2, 3), torch.tensor([[0.1], [0.0]])).log_prob(torch.zeros(2, 3))


def test_alpha_to_one_makes_the_last_step_deterministic():
    scheduler = DDIMScheduler(**BETAS, set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    grid = Grid.vp(scheduler.timesteps, scheduler.alphas_cumprod, 1.0, "epsilon")
    std = DDIM(1.0).std(grid)
    assert std[-1] == 0
    assert (std[:-1] > 0).all()


def test_quiet_last_steps_are_those_of_the_ode():
    _, grid = vp()
    x, output = torch.randn(2, 2, 4, 8, 8)
    rule, i = DDIM(1.0, quiet_last=2), torch.tensor([grid.steps - 2, grid.steps - 1])
    assert (rule.std(grid) > 0).tolist() == [True] * (grid.steps - 2) + [False] * 2
    torch.testing.assert_close(rule(output, x, grid, i).mean, ODE()(output, x, grid, i).mean)


def test_exact_step_kl_in_epsilon_space():
    """B^2 |eps - eps_ref|^2 / 2 sigma^2; B = sqrt(1 - abar_s - sigma^2) - sqrt(abar_s (1 - abar_t) / abar_t)."""
    _, grid = vp(20)
    x, eps, ref = torch.randn(3, 1, 4, 8, 8)
    for k in (0, 10, 19):
        t, s = grid.signal[k] ** 2, grid.signal[k + 1] ** 2
        sigma = DDIM().std(grid)[k]
        b = (1 - s - sigma**2).sqrt() - (s * (1 - t) / t).sqrt()
        i = torch.tensor([k])
        ours = DDIM()(eps, x, grid, i).kl(DDIM()(ref, x, grid, i))
        expected = float(b**2 / (2 * sigma**2)) * (eps - ref).square().sum()
        torch.testing.assert_close(ours[0], expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("rule", "grid"), [(DDIM(), flow(4)), (FlowSDE(), vp()[1])])
def test_a_rule_for_the_other_kind_of_model_is_refused(rule, grid):
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(DiffalignError, match=r"use '(ddim|flow_sde)'"):
        rule(x, x, grid, torch.tensor([0]))
