"""FK steering against a finite chain whose tilted law is known, and what must not change it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.errors import DiffalignError
from diffalign.policy import Policy
from diffalign.rewarding.compose import composed
from diffalign.search import Task
from diffalign.search.best_of_n import BestOfN
from diffalign.search.fk import FK, Swarm, systematic
from diffalign.steps import DDIM, ODE, FlowSDE
from families import FAMILIES

from .finite import FinitePolicy, Says, is_one, state

pytestmark = pytest.mark.usefixtures("one_thread")

LAM, SAYS = 2.0, Says()
GENTLE = {"diff": 2.0, "max": 1.0, "sum": 0.5}
"""Tilts at which a few thousand particles suffice: "max" and "sum" tilt several times, and take it back at last."""
MANY = FK(particles=6000, lam=LAM, start=0.0, end=0.75, every=0.25)
TOLERANCE = 0.03
"""Four standard errors of a share among 6000 particles, and some for their having ancestors in common."""


def run(method, prompts=("a",), reward=is_one, rule=SAYS, batch=10**4):
    return method(FinitePolicy(), list(prompts), reward, rule=rule, batch=batch)


def share(extras) -> float:
    """The weight of the particles that ended in state 1."""
    return float(extras["weights"][state(extras["particles"]) == 1].sum())


@pytest.mark.parametrize("potential", ["diff", "max", "sum"])
@pytest.mark.parametrize("below", [1.0, 0.5, 0.2])
def test_particles_sample_the_tilted_chain(potential, below):
    lam = GENTLE[potential]
    found = run(replace(MANY, potential=potential, lam=lam, resample_below=below))
    assert share(found.extras[0]) == pytest.approx(FinitePolicy().law(lam), abs=TOLERANCE)


class Forgetful(Swarm):
    """What must not be done: skipping a resampling throws the weights away, and goes on from their rewards."""

    def resample(self, dice, below):
        chosen = super().resample(dice, below)
        self.log_weights = torch.zeros_like(self.log_weights)
        return chosen


def test_throwing_weights_away_would_be_seen(monkeypatch):
    monkeypatch.setattr(
        FK, "swarm", lambda self, prompts: Forgetful(prompts, self.particles, self.lam, "diff")
    )
    found = run(replace(MANY, resample_below=0.2))
    assert abs(share(found.extras[0]) - FinitePolicy().law(LAM)) > 2 * TOLERANCE


def test_without_intermediate_rewards_it_weighs_samples():
    found = run(replace(MANY, start=1.0, end=0.0))
    assert share(found.extras[0]) == pytest.approx(FinitePolicy().law(LAM), abs=TOLERANCE)


def test_lam_0_is_the_base():
    plain = run(BestOfN(8), ["a", "b"], batch=3)
    found = run(FK(particles=8, lam=0.0, potential="max"), ["a", "b"], batch=5)
    assert torch.equal(found.latents, plain.latents)
    assert torch.equal(found.noise, plain.noise)
    assert torch.equal(found.extras[0]["weights"], torch.full((8,), 1 / 8, dtype=torch.float64))


@pytest.mark.parametrize("potential", ["diff", "max", "sum"])
def test_potentials_multiply_to_the_tilt_along_every_line(potential):
    rewards = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    swarm = Swarm(2, 5, LAM, potential)
    for k in range(3):
        swarm.weigh(rewards[k].flatten())
        swarm.resample(torch.tensor([0.3, 0.8], dtype=torch.float64), below=0.6 if k else 1.0)
    swarm.finish(rewards[3].flatten())
    torch.testing.assert_close(swarm.spent, LAM * rewards[3])


@pytest.mark.parametrize("potential", ["diff", "max", "sum"])
def test_weights_that_were_never_resampled_are_the_tilt_itself(potential):
    rewards = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double()
    swarm = Swarm(1, 5, LAM, potential)
    for k in range(2):
        swarm.weigh(rewards[k])
        assert swarm.resample(torch.tensor([0.3]).double(), below=1e-9).tolist() == [0, 1, 2, 3, 4]
    swarm.finish(rewards[2])
    torch.testing.assert_close(swarm.weights[0], (LAM * rewards[2]).softmax(0))


def test_differences_do_not_feel_an_offset():
    def offset(images, prompts):
        return is_one(images, prompts) + 100

    method = FK(particles=20, lam=LAM)
    ours, theirs = run(method, reward=is_one), run(method, reward=offset)
    assert torch.equal(ours.extras[0]["particles"], theirs.extras[0]["particles"])
    torch.testing.assert_close(ours.extras[0]["weights"], theirs.extras[0]["weights"])


def test_systematic_resampling_takes_each_as_often_as_it_weighs():
    weights = torch.tensor([[0.5, 0.25, 0.0, 0.25], [0.1, 0.0, 0.9, 0.0]], dtype=torch.float64)
    for dice in (0.0, 0.4, 0.999):
        chosen = systematic(weights, torch.full((2,), dice, dtype=torch.float64))
        assert chosen[0].tolist() == [0, 0, 1, 3]
        counts = torch.bincount(chosen[1], minlength=4)
        assert counts.tolist() in ([0, 0, 4, 0], [1, 0, 3, 0])


def test_results_depend_neither_on_the_batch_nor_on_other_prompts():
    method = FK(particles=6, lam=LAM)
    together = run(method, ["a", "b", "a"], batch=4)
    for prompts, batch, at in ((["b"], 100, 1), (["a", "a"], 1, 2)):
        alone = run(method, prompts, batch=batch)
        assert torch.equal(alone.extras[-1]["particles"], together.extras[at]["particles"])
    assert not torch.equal(together.latents[0], together.latents[2])


def test_cost_is_counted():
    found = run(FK(particles=3, start=0.25, end=0.5, every=0.25), ["a", "b"])
    assert [(c.denoiser_calls, c.reward_calls) for c in found.costs] == [(4 * 3, 3 * 3)] * 2


def sometimes_nan(images, prompts):
    """No score for what is below -1."""
    return is_one(images, prompts).where(images[:, 0] > -1, torch.nan)


@pytest.mark.parametrize("potential", ["diff", "max", "sum"])
def test_particles_without_a_score_lose_and_are_counted(potential):
    found = run(FK(particles=40, lam=LAM, potential=potential), reward=sometimes_nan)
    extras = found.extras[0]
    lost = extras["rewards"] == -torch.inf
    assert 0 < int(lost.sum()) <= found.costs[0].lost
    assert float(extras["weights"][lost].sum()) == 0
    assert float(extras["weights"].sum()) == pytest.approx(1)
    assert found.total[0] == 1


def test_a_round_of_lost_rewards_changes_nothing():
    swarm = Swarm(1, 3, LAM, "diff")
    swarm.weigh(torch.tensor([0.0, 0.1, -torch.inf]))
    before = swarm.weights
    swarm.weigh(torch.full((3,), -torch.inf))
    assert torch.equal(swarm.weights, before)
    swarm.finish(torch.tensor([1.0, 1.0, 5.0]))
    torch.testing.assert_close(swarm.weights, torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("rule", [Says(0.0), ODE()])
def test_a_rule_without_noise_is_refused(rule):
    with pytest.raises(DiffalignError, match="no noise makes the copies differ"):
        run(FK(), rule=rule)


@pytest.mark.parametrize("name", ["StableDiffusionXL", "StableDiffusion3", "Flux", "Wan"])
def test_every_kind_of_pipeline_is_steered(name):
    family = FAMILIES[name]
    policy = Policy(family.make(), steps=family.steps, call=family.call, lora=None)

    def bright(images, prompts):
        return images.flatten(1).mean(1)

    bright.video = True
    method = FK(particles=3, lam=300.0, every=0.3)
    task = Task(policy, composed(bright), family.prompts[:2], method.default_rule(policy), batch=4)
    assert isinstance(task.rule, FlowSDE if policy.grid.flow else DDIM)
    found = method.run(task)
    assert [c.denoiser_calls for c in found.costs] == [3 * family.steps] * 2
    assert found.total.tolist() == [float(extras["rewards"].max()) for extras in found.extras]
    alone = method(policy, family.prompts[1:2], bright, batch=3)
    torch.testing.assert_close(alone.latents[0], found.latents[1], rtol=1e-3, atol=1e-3)
