"""RL guidance: exact where the reward is linear, wrong by known amounts where it is quadratic."""

from __future__ import annotations

import copy

import pytest
import torch
from toys import Chain, ChainPolicy

from diffalign.errors import DiffalignError
from diffalign.mixed import Mixed
from diffalign.policy import LoraSpec, Policy
from diffalign.search.best_of_n import BestOfN
from diffalign.search.rl_guidance import RLGuidance
from diffalign.steps import DDIM, ODE
from families import FAMILIES

from .gaussian import GaussianPolicy, flow, reached, vp

RULE = Chain(a=(0.9, 0.8, 1.1), sigma=(0.5, 0.3, 0.4))
PROMPTS = ["a", "b", "a"]
pytestmark = pytest.mark.usefixtures("one_thread")


def total(samples, prompts):
    return samples.flatten(1).sum(1)


def chain(scale: float = 1.0) -> ChainPolicy:
    policy = ChainPolicy(3, 2)
    with torch.no_grad():
        policy.delta.copy_(scale * torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    return policy


@pytest.mark.parametrize("w", [-0.5, 0.0, 0.3, 1.0, 2.5])
def test_on_the_linear_gaussian_chain_a_shift_delta_becomes_w_delta(w):
    """The chain tuned with KL weight beta, guided by w, is the chain tuned with beta / w (section 0.5)."""
    found = RLGuidance(w)(chain(), PROMPTS, total, rule=RULE)
    expected = BestOfN(1)(chain(w), PROMPTS, total, rule=RULE)
    torch.testing.assert_close(found.latents, expected.latents, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", [ODE(), DDIM()])
def test_a_linear_reward_on_gaussian_data_doubles_its_shift(rule):
    """p_ref = N(0, 1), p_tuned = N(1, 1): w = 2 is N(2, 1), to the error of 1,000 steps."""
    mean, var = reached(Mixed(GaussianPolicy(vp(1000), 1.0, 1.0), 2.0), rule)
    assert (mean, var) == (pytest.approx(2, abs=0.02), pytest.approx(1, abs=0.01))


@pytest.mark.parametrize(
    ("w", "mean", "var", "tilted"), [(2.0, 0.613, 0.159, (0.5, 0.25)), (0.5, 0.228, 0.629, (0.286, 0.571))]
)
def test_a_quadratic_reward_is_over_sharpened(w, mean, var, tilted):
    """What RL guidance does not do: p_ref = N(0, 1), p_tuned = N(.4, .4) ~ p_ref exp(r), r quadratic.

    Its samples are not p_ref exp(w r) = N(*tilted): the product of noised densities is not the noised product.
    """
    found = reached(Mixed(GaussianPolicy(flow(1000), 0.4, 0.4), w), ODE())
    assert found == (pytest.approx(mean, abs=0.003), pytest.approx(var, abs=0.003))
    assert abs(found[0] - tilted[0]) > 0.05
    assert abs(found[1] - tilted[1]) > 0.05


@pytest.mark.parametrize(("w", "passes"), [(0.0, 1), (1.0, 1), (2.0, 2), (-1.0, 2)])
def test_a_mixture_costs_two_passes_a_sample_and_its_ends_one(w, passes):
    policy = chain()
    found = RLGuidance(w, method=BestOfN(4))(policy, PROMPTS, total, rule=RULE)
    assert [cost.denoiser_calls for cost in found.costs] == [passes * 4 * 3] * 3
    assert [cost.reward_calls for cost in found.costs] == [4] * 3
    assert policy.denoiser_calls == passes * 4 * 3 * 3


def test_an_untuned_policy_is_refused():
    with pytest.raises(DiffalignError, match=r"an untrained one.*policy\.load\(FOLDER\)"):
        RLGuidance(2.0)(ChainPolicy(3, 2), PROMPTS, total, rule=RULE)


# --- with a pipeline whose classifier-free guidance doubles the batch ---

TEXTS = ["cat", "two dogs"]


@pytest.fixture(scope="module")
def fresh():
    family = FAMILIES["StableDiffusion"]
    return Policy(family.make(), steps=3, call=family.call, lora=LoraSpec(rank=2))


@pytest.fixture(scope="module")
def tuned(fresh):
    fresh.snapshot("fresh")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in fresh.trainable():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return fresh


def predicted(policy, variant="policy"):
    x, cond = policy.noise([1, 2]), policy.encode(TEXTS)
    with torch.no_grad(), policy.using(variant):
        return policy.predict(x, policy.grid.time(torch.tensor([1, 1])), cond)


def test_w_0_is_the_reference_and_w_1_the_tuned_policy_bit_for_bit(tuned):
    reference, own = predicted(tuned, "reference"), predicted(tuned)
    assert not torch.allclose(reference, own, atol=1e-3)
    assert torch.equal(predicted(Mixed(tuned, 0)), reference)
    assert torch.equal(predicted(Mixed(tuned, 1)), own)


def test_variants_are_mixed_after_classifier_free_guidance(tuned):
    """Guidance weight 7.5: f = u + 7.5 (c - u) of each variant, then their mixture."""
    expected = 2.5 * predicted(tuned).double() - 1.5 * predicted(tuned, "reference").double()
    torch.testing.assert_close(predicted(Mixed(tuned, 2.5)).double(), expected, rtol=1e-5, atol=1e-5)


def test_other_variants_stay_unmixed_and_the_policy_is_left_as_it_was(tuned):
    mixed = Mixed(tuned, 2.5)
    before = predicted(mixed)
    for variant in ("reference", "fresh"):
        assert torch.equal(predicted(mixed, variant), predicted(tuned, variant))
    assert torch.equal(predicted(mixed), before)
    assert tuned.adapters.active == "policy"


def test_a_snapshot_can_be_what_is_mixed_and_an_untrained_one_cannot(tuned):
    tuned.snapshot("kept")
    assert torch.equal(predicted(Mixed(tuned, 1, tuned="kept")), predicted(tuned))
    with pytest.raises(DiffalignError, match="'fresh' predicts as the reference does"):
        Mixed(tuned, 2.0, tuned="fresh")
    with pytest.raises(DiffalignError, match="nope"):
        Mixed(tuned, 2.0, tuned="nope")


def test_a_fully_tuned_policy_counts_as_tuned_once_a_weight_has_moved():
    family = FAMILIES["StableDiffusion"]
    policy = Policy(family.make(), steps=2, call=family.call, lora=None)
    assert not policy.differs()
    with torch.no_grad():
        policy.trainable()[0].add_(1e-3)
    assert policy.differs()


def test_best_of_n_searches_with_the_mixture(tuned):
    found = BestOfN(3)(Mixed(tuned, 2.0), TEXTS, lambda images, prompts: images.mean((1, 2, 3)))
    assert bool((found.total >= found.first_scores["total"]).all())
    assert found.costs[0].denoiser_calls == 2 * 3 * 3


def test_gradients_reach_the_latents_and_wrong_ones_are_refused(tuned):
    mixed, cond = Mixed(tuned, 2.0), tuned.encode(TEXTS[:1])
    x = tuned.noise([3]).requires_grad_()
    t = tuned.grid.time(torch.tensor([1]))
    (slope,) = torch.autograd.grad(mixed.predict(x, t, cond).sum(), x)
    parts = []
    for variant in ("reference", "policy"):
        with tuned.using(variant):
            parts.append(torch.autograd.grad(tuned.predict(x, t, cond).sum(), x)[0])
    torch.testing.assert_close(slope, 2 * parts[1] - parts[0], rtol=1e-4, atol=1e-5)
    tuned.denoiser.enable_gradient_checkpointing()
    try:
        with pytest.raises(DiffalignError, match="gradient_checkpointing=False"):
            mixed.predict(x, t, cond)
    finally:
        tuned.denoiser.disable_gradient_checkpointing()


def test_a_mixture_can_be_copied(tuned):
    assert copy.copy(Mixed(tuned, 2.0)).w == 2.0
