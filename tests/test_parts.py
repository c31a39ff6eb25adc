"""Parts of a pipeline that come from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffalign.errors import DiffalignError
from diffalign.policy import Policy

from .families.stable_diffusion import stable_diffusion, unet

CALL = {"height": 16, "width": 16, "guidance_scale": 1.0}


def test_part_from_a_folder_takes_the_place_of_the_models_own(tmp_path: Path) -> None:
    stable_diffusion().save_pretrained(tmp_path / "model")
    other = unet(77)
    other.save_pretrained(tmp_path / "unet")
    path = str(tmp_path / "model")
    ours = Policy.from_pretrained(
        path, parts={"unet": str(tmp_path / "unet")}, steps=2, call=CALL, lora=False
    )
    for name, value in other.state_dict().items():
        assert torch.equal(ours.denoiser.state_dict()[name], value)


def test_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    stable_diffusion().save_pretrained(tmp_path / "model")
    with pytest.raises(DiffalignError, match="could not be loaded"):
        Policy.from_pretrained(
            str(tmp_path / "model"), parts={"unet": str(tmp_path / "no")}, steps=2, lora=False
        )
