"""Apple's GPUs have no float64: whatever is computed in it has to leave the device first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from diffalign.grid import Grid
from diffalign.metrics import Metrics, describe
from diffalign.models.inference import _weights, difference
from diffalign.models.schedulers import grid_of
from diffalign.models.stub import _digest


class Apple(Tensor):
    """A tensor that says it is on Apple's GPU and refuses what that refuses."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Apple:
        made: Apple = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="mps")
        return made

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __getitem__(self, at: Any) -> Apple:
        return Apple(self.held[at])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = torch.device(kwargs.get("device") or "mps").type == "cpu"
        if kwargs.get("dtype") == torch.float64 and not leaves:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        result = func(*tree_map(lambda t: t.held if isinstance(t, cls) else t, args), **kwargs)
        return result if leaves else tree_map(lambda t: cls(t) if isinstance(t, Tensor) else t, result)


def on_apple(*values: float) -> Apple:
    return Apple(torch.tensor(values))


def test_the_stand_in_refuses_what_the_device_refuses():
    with pytest.raises(TypeError, match="float64"):
        on_apple(1.0).double()
    assert on_apple(0.5).cpu().double().tolist() == [0.5]


def test_metrics_of_a_device_without_float64():
    metrics = Metrics()
    metrics.add("a", on_apple(1.0, 3.0))
    assert metrics.row() == {"a": 2.0}
    assert describe("r", on_apple(1.0, 3.0))["r/mean"] == 2.0


def test_the_stubbed_denoiser_reads_arguments_of_such_a_device():
    values = torch.rand(2, 3)
    torch.testing.assert_close(_digest(Apple(values), 2), _digest(values, 2))


def test_grids_are_made_from_such_a_device():
    abar, sigmas = on_apple(0.9, 0.5, 0.1), on_apple(1.0, 0.5, 0.0)
    steps = torch.tensor([2, 0])
    assert Grid.vp(steps, abar, 1.0, "epsilon").signal.device.type == "cpu"
    assert Grid.from_sigmas(steps, sigmas).noise.tolist() == [1.0, 0.5, 0.0]
    scheduler = SimpleNamespace(
        all_timesteps=steps, all_sigmas=sigmas, config=SimpleNamespace(prediction_type="flow_prediction")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffalign.models.schedulers.is_flow", lambda _: True)
        assert grid_of(scheduler, "X").noise.tolist() == [1.0, 0.5, 0.0]


def test_rules_are_inferred_from_outputs_of_such_a_device():
    a, b = torch.rand(2, 8), torch.rand(2, 8)
    found = _weights([Apple(a), Apple(b)], Apple(3 * a - 2 * b), [3.0])
    assert found.tolist() == [3.0, -2.0]
    assert difference(Apple(a), Apple(a)) == 0
