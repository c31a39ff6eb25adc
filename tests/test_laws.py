"""The laws of the numbers, on the packaged model: what must hold before any curve means anything."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from diffalign.algorithms.d3po import D3PO
from diffalign.algorithms.ddpo import DDPO
from diffalign.algorithms.prdp import PRDP
from diffalign.errors import DiffalignError
from diffalign.policy import LoraSpec, Policy
from diffalign.run import Batching, Run
from diffalign.steps import DDIM
from diffalign.training.trainer import Trainer
from diffalign.walk import log_prob, rollout
from diffalign_rewards.jpeg_compressibility import jpeg_compressibility

PROMPTS = ["red apple", "cat face"]


def make(dtype: str = "float32", **more) -> Policy:
    torch.manual_seed(0)
    more = {"lora": LoraSpec(rank=2), "steps": 4, "guidance_scale": 3.0, **more}
    return Policy.from_pretrained("emoji", dtype=dtype, **more)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make()


def moved(policy: Policy) -> Policy:
    """With an adapter that does something: a fresh LoRA is exactly the reference."""
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return policy


def run_of(policy: Policy, **sizes) -> Run:
    batching = Batching(**{"prompts_per_round": 2, "images_per_prompt": 2, "micro_batch": 4, **sizes})
    return Run(policy, DDIM(), jpeg_compressibility, PROMPTS, batching)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ratio_is_exactly_one_for_the_same_batch(dtype):
    policy = moved(make(dtype))
    batch = rollout(policy, DDIM(), PROMPTS, [1, 2], noise_seeds=[1, 2], group=[0, 1], batch=2)
    assert batch.states.dtype == getattr(torch, dtype)
    for k in range(batch.steps):
        rows, cols = torch.arange(2), torch.full((2,), k)
        with torch.no_grad():
            now = log_prob(policy, batch, rows, cols)
        assert torch.equal(now, batch.log_probs[:, k])


def test_a_fresh_adapter_is_exactly_the_reference(policy):
    run = run_of(policy, micro_batch=3, sample_batch=2)
    batch = D3PO().collect(run)
    assert torch.equal(batch.reference_log_probs, batch.log_probs)


def test_another_batch_size_is_float_noise_and_logged(policy):
    run = run_of(policy, micro_batch=3, sample_batch=4)
    batch = run.sample()
    for rows, cols in run.transitions(batch):
        run.log_prob(batch, rows, cols)
    assert run.metrics.row()["ratio/deviation"] < 1e-5


@pytest.mark.parametrize(("deviation", "warns"), [(2e-5, True), (0.5e-5, False)])
def test_a_deviation_near_the_clip_range_is_warned_about(deviation, warns, caplog):
    trainer = SimpleNamespace(algorithm=DDPO(clip_range_mean=1e-4))
    with caplog.at_level(logging.WARNING):
        Trainer._check_ratio(trainer, {"ratio/deviation": deviation})
    assert bool(caplog.records) == warns


def test_training_with_another_guidance_is_an_error(policy):
    batch = rollout(policy, DDIM(), PROMPTS, [1, 2], noise_seeds=[1, 2], group=[0, 1], batch=2)
    batch.guidance_scale = 7.5
    with pytest.raises(DiffalignError, match=r"guidance scale 7\.5"):
        log_prob(policy, batch, torch.tensor([0]), torch.tensor([0]))


@pytest.mark.parametrize(
    "algorithm",
    [
        D3PO(), D3PO(mode="paper_code"), D3PO(compare="pareto"), PRDP(), PRDP(share_noise=True), DDPO(),
        DDPO(advantage="batch"), DDPO(advantage="leave_one_out"), DDPO(timestep_fraction=0.5),
    ],
    ids=repr,
)  # fmt: skip
def test_every_loss_moves_parameters(policy, algorithm):
    assert float(gradient(policy, algorithm).abs().sum()) > 0


def test_the_kl_penalty_moves_parameters_by_itself():
    """With no advantage the only gradient left is the penalty's, and only away from the reference."""
    quiet = DDPO(advantage_clip=0.0, kl_weight=1.0)
    fresh = make()
    assert float(gradient(fresh, quiet).abs().sum()) == 0
    assert float(gradient(moved(fresh), quiet).abs().sum()) > 0


def gradient(policy: Policy, algorithm, **sizes) -> torch.Tensor:
    run = run_of(policy, **sizes)
    batch = algorithm.collect(run)
    for parameter in policy.trainable():
        parameter.grad = None
    for loss in algorithm.losses(run, next(iter(algorithm.minibatches(run, batch)))):
        loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None])


def test_losses_of_a_minibatch_do_not_depend_on_the_micro_batch(policy):
    for algorithm in (D3PO(), PRDP(beta_nats=1e-3), DDPO()):
        small, large = (gradient(policy, algorithm, micro_batch=size) for size in (2, 16))
        assert float((small - large).norm() / large.norm()) < 1e-4
