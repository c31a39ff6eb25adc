"""Where the parts of a pipeline live, in which dtype, and how often they move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from diffalign.models.loading import load_pipeline
from diffalign.models.placement import _convert
from diffalign.models.shell import view
from diffalign.policy import LoraSpec, Policy

from .families.stable_diffusion import SIZE, stable_diffusion

META = torch.device("meta")


def part(**marks: bool) -> nn.Module:
    module = nn.Linear(2, 2)
    module.__dict__.update(marks)
    return module


@pytest.mark.parametrize(
    ("marks", "device", "dtype"),
    [
        ({}, "meta", torch.float16),
        ({"is_quantized": True}, "meta", torch.float32),
        ({"is_quantized": True, "is_loaded_in_4bit": True}, "cpu", torch.float32),
        ({"is_quantized": True, "is_loaded_in_8bit": True}, "cpu", torch.float32),
    ],
)
def test_quantised_parts_move_without_a_cast_and_bitsandbytes_stays(marks, device, dtype):
    module = part(**marks)
    _convert(module, META, torch.float16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {(device, dtype)}


def test_text_encoders_come_to_the_device_once_for_many_prompts(monkeypatch: pytest.MonkeyPatch):
    policy = Policy(stable_diffusion(), steps=3, call=SIZE, lora=LoraSpec(rank=2), offload=True)
    text, moved = policy.shell.pipe.text_encoder, []
    monkeypatch.setattr(
        "diffalign.models.placement._convert",
        lambda part, device, dtype: moved.append((part is text, device.type)),
    )
    policy.device = policy.placement.device = META
    policy.encode(["cat", "two dogs", "cat"])
    assert moved == [(True, "meta"), (True, "cpu")]
    policy.encode(["cat", "two dogs"])
    assert len(moved) == 2, "both are remembered"


def test_weights_that_quanto_made_move_whole(tmp_path: Path):
    pytest.importorskip("optimum.quanto")
    stable_diffusion().save_pretrained(tmp_path)
    unet = view(load_pipeline(str(tmp_path), None, None, None, "quanto_int8").unet)
    kinds = [type(p) for p in unet.parameters()]
    _convert(unet, META, torch.float16)
    assert {(p.device.type, p.dtype) for p in unet.parameters()} == {("meta", torch.float32)}
    assert [type(p) for p in unet.parameters()] == kinds
    assert len(set(kinds)) == 2
