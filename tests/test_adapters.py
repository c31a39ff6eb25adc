"""Adapters are told apart by their own names, whatever the layers are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffalign.errors import DiffalignError
from diffalign.models import weights
from diffalign.models.adapters import Adapters, LoraSpec


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


class Saves:
    """A pipeline that keeps LoRA as diffusers' pipelines do."""

    @staticmethod
    def save_lora_weights(folder, unet_lora_layers, unet_lora_adapter_metadata):
        folder.mkdir(exist_ok=True)
        told = {
            f"unet.{key}": value for key, value in unet_lora_adapter_metadata.items() if key == "lora_alpha"
        }
        state = {f"unet.{key}": value for key, value in unet_lora_layers.items()}
        save_file(state, folder / weights.LORA_FILE, {"lora_adapter_metadata": json.dumps(told)})


@pytest.mark.parametrize("pipeline", [object, Saves], ids=["peft", "diffusers"])
def test_a_saved_lora_tells_what_it_is(tmp_path: Path, pipeline):
    spec = LoraSpec(rank=1, alpha=3.0, targets=["0", "to_q"])
    adapters = Adapters({"unet": Blocks()}, spec)
    weights.save(adapters, pipeline, tmp_path)
    found = weights.lora_of(tmp_path)
    assert (found.rank, found.alpha, sorted(found.targets)) == (1, 3.0, ["down.0", "policy.to_q"])
    again = Adapters({"unet": Blocks()}, found)
    weights.load(again, tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(adapters.state().values(), again.state().values(), strict=True)
    )


def test_files_that_hold_no_lora_are_refused(tmp_path: Path):
    with pytest.raises(DiffalignError, match="no LoRA weights in"):
        weights.lora_of(tmp_path)
    save_file({"x.weight": torch.zeros(2)}, tmp_path / weights.PEFT_FILE)
    with pytest.raises(DiffalignError, match="holds no LoRA of one rank"):
        weights.lora_of(tmp_path)


def test_with_lora_false_nothing_is_trained_kept_or_different(tmp_path: Path):
    blocks = Blocks().requires_grad_(False)
    adapters = Adapters({"unet": blocks}, False)
    assert adapters.module("unet") is blocks
    assert not adapters.differs()
    assert adapters.state() == {}
    with adapters.using("reference"):
        assert adapters.module("unet") is blocks
    for use in (lambda: adapters.snapshot("now"), lambda: weights.save(adapters, object, tmp_path)):
        with pytest.raises(DiffalignError, match="lora=False"):
            use()
