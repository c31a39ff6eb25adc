"""Adapters are told apart by their own names, whatever the layers are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diffalign import weights
from diffalign.adapters import Adapters, LoraSpec
from diffalign.errors import DiffalignError


class Blocks(nn.Module):
    """Layers whose paths hold numbers, as U-Nets' do, and the names of adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Linear(2, 2), nn.Conv2d(2, 2, 1)])
        self.policy = nn.ModuleDict({"to_q": nn.Linear(2, 2)})


def make() -> Adapters:
    return Adapters({"unet": Blocks()}, LoraSpec(rank=1, targets=["0", "1", "to_q"]))


@pytest.mark.parametrize("name", ["0", "1", "down", "to_q", "round 7", "keys"])
def test_a_snapshot_may_have_the_name_of_a_layer(name):
    adapters = make()
    adapters.snapshot(name)
    then = adapters.state()
    with torch.no_grad():
        for _, parameter in adapters.named_parameters():
            parameter.add_(1)
    kept = dict(adapters.named_parameters(name))
    assert len(kept) == len(then) == 2 * 3, "the two factors of three layers"
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), then.values(), strict=True))
    assert not any(parameter.requires_grad for parameter in kept.values())


def test_a_snapshot_named_like_a_layer_takes_nothing_from_what_is_saved(tmp_path: Path):
    adapters = make()
    alone = saved(adapters, tmp_path / "alone")
    adapters.snapshot("0")
    assert saved(adapters, tmp_path / "beside") == alone
    assert len(alone) == 6


def saved(adapters: Adapters, folder: Path) -> set[str]:
    weights.save(adapters, object, folder)
    return set(load_file(next(folder.glob("*.safetensors"))))


def test_layers_named_like_the_policy_are_not_trained():
    trained = {key for key, p in make().base["unet"].named_parameters() if p.requires_grad}
    assert len(trained) == 6
    assert all(".lora_" in key for key in trained)


@pytest.mark.parametrize("name", ["policy", "reference", "a.b"])
def test_names_that_cannot_be_are_refused(name):
    with pytest.raises(DiffalignError, match="cannot be the name of a snapshot"):
        make().snapshot(name)
