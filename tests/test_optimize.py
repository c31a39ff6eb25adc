"""One optimizer step: rates, clipping, averaging, and a state that resumes bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from diffalign.errors import RunError
from diffalign.training.optimize import Optimizer, OptimizerSettings


def make(**settings) -> tuple[nn.Parameter, Optimizer]:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    chosen = OptimizerSettings(**{"lr": 0.1, "updates": 4, "weight_decay": 0.0, **settings})
    return weight, Optimizer([weight], chosen, Accelerator(cpu=True))


def step(weight: nn.Parameter, optimizer: Optimizer) -> float:
    optimizer.backward((weight - 5).square().sum())
    return optimizer.step()


def rates(**settings) -> list[float]:
    weight, optimizer = make(**settings)
    found = []
    for _ in range(4):
        found.append(round(optimizer.lr, 6))
        step(weight, optimizer)
    return found


def test_schedules():
    assert rates() == [0.1, 0.1, 0.1, 0.1]
    assert rates(warmup_updates=2) == [0.0, 0.05, 0.1, 0.1]
    assert rates(lr_schedule="linear") == [0.1, 0.075, 0.05, 0.025]


def test_two_losses_add_up_and_the_norm_is_before_clipping():
    weight, optimizer = make(max_grad_norm=1e-3)
    optimizer.backward(3 * weight[0])
    optimizer.backward(4 * weight[1])
    assert optimizer.step() == pytest.approx(5.0)


def test_the_first_step_of_adam_is_the_learning_rate():
    weight, optimizer = make()
    step(weight, optimizer)
    torch.testing.assert_close(weight.detach(), torch.tensor([1.1, -1.9]))


def test_a_gradient_that_is_not_a_number_stops():
    weight, optimizer = make()
    optimizer.backward(weight.sum() * torch.nan)
    with pytest.raises(RunError, match="gradient is not a number"):
        optimizer.step()


def test_ema_stands_in_and_steps_back():
    weight, optimizer = make(ema_decay=0.9)
    for _ in range(3):
        step(weight, optimizer)
    trained = weight.detach().clone()
    with optimizer.averaged():
        assert not torch.equal(weight, trained)
    assert torch.equal(weight, trained)


def test_lowered_rates_stay_lowered():
    weight, optimizer = make()
    optimizer.scale_lr(0.5)
    step(weight, optimizer)
    assert optimizer.lr == pytest.approx(0.05)


def test_resumed_steps_are_the_same_bits():
    weight, optimizer = make(ema_decay=0.9, lr_schedule="cosine")
    step(weight, optimizer)
    other, resumed = make(ema_decay=0.9, lr_schedule="cosine")
    other.data.copy_(weight.data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for w, o in ((weight, optimizer), (other, resumed)):
        step(w, o)
        step(w, o)
    assert torch.equal(weight, other)
    assert torch.equal(optimizer.ema.shadow_params[0], resumed.ema.shadow_params[0])


def test_averaged_weights_of_a_checkpoint_go_where_the_trained_ones_are():
    weight, optimizer = make(ema_decay=0.9)
    step(weight, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    elsewhere = nn.Parameter(torch.zeros(2, device="meta"))
    settings = OptimizerSettings(lr=0.1, updates=4, ema_decay=0.9)
    resumed = Optimizer([elsewhere], settings, Accelerator(cpu=True))
    resumed.load_state_dict(saved)
    assert resumed.ema.shadow_params[0].device == elsewhere.device
