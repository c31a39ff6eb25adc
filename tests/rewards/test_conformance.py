"""Every built-in reward passes the conformance kit, the learned ones on small weights in the official formats."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from golden import tiny, tiny_blip
from huggingface_hub import constants
from PIL import Image

from diffalign import registry
from diffalign.arguments import parameters
from diffalign.authoring.conformance import conform
from diffalign.errors import DiffalignError
from diffalign.settings import named

pytestmark = pytest.mark.usefixtures("one_thread")


def plain(name, **given):
    """A reward without weights, or with packaged ones."""
    return lambda folder: registry.reward(name, **given)


def compared(name, key, **given):
    """A reward that compares with a few pictures, which are drawn first."""

    def make(folder):
        for k in range(3):
            pixels = np.random.RandomState(k).randint(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
        return registry.reward(name, encoder="emoji_clip", **{key: str(folder)}, **given)

    return make


REWARDS = {
    **tiny.REWARDS,
    "hpsv2.1": partial(tiny.hpsv2, version="2.1"),
    "imagereward": tiny_blip.imagereward,
    "ocr": plain("ocr", side=64),
    "safety": plain("safety"),
    "emoji_clip": plain("emoji_clip"),
    "emoji_noisy_clip": plain("emoji_noisy_clip"),
    "jpeg_compressibility": plain("jpeg_compressibility"),
    "jpeg_incompressibility": plain("jpeg_incompressibility"),
    "frames": plain("frames", reward="emoji_clip"),
    "motion_smoothness": plain("motion_smoothness"),
    "dynamic_degree": plain("dynamic_degree"),
    "vendi": plain("vendi", encoder="emoji_clip"),
    "fid": compared("fid", "reference"),
    "kid": compared("kid", "reference"),
    "lambda_harmonic": compared("lambda_harmonic", "references"),
}
"""name -> makes it, in a folder for its weights."""

BUILT_IN = sorted({*registry.built_in_rewards(), *registry.ALIASES})


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_conforms(name, tmp_path):
    conform(REWARDS[name](tmp_path))


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_is_constructed_in_this_one_environment_or_says_which_weights_to_fetch(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    asked = parameters(registry.reward_maker(name))
    known = {"encoder": "emoji_clip", "reward": "emoji_clip", "reference": "emoji", "references": "emoji"}
    given = {key: known[key] for key, parameter in asked.items() if parameter.default is parameter.empty}
    assert named.problems(name, given, registry.reward_maker) == []
    try:
        made = registry.reward(name, **given)
    except DiffalignError as error:
        assert "Fetch it once with `hf download" in str(error)  # noqa: PT017 - both ends are right
        assert any(need.startswith("weights: ") for need in declared(name))
    else:
        assert callable(made) or hasattr(made, "score_set")


def declared(name):
    needs = getattr(registry.reward_class(name), "needs", ())
    return [needs] if isinstance(needs, str) else needs
