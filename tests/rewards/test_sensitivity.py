"""The goldens would tell: no bias, norm, epsilon or activation can be wrong without a score moving by over 1e-4."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from golden import store, tiny, tiny_blip
from open_clip.transformer import QuickGELU
from torch import nn
from torchvision.transforms.functional import to_tensor
from transformers.activations import GELUActivation

from diffalign.reward import sharing

TOLERANCE = 1e-4
REWARDS = {**tiny.REWARDS, "imagereward": tiny_blip.imagereward}
NOTHING_DEPENDS_ON = ("k_proj.bias", "key.bias")
"""Softmax takes away what is the same for all keys."""

pytestmark = pytest.mark.usefixtures("one_thread")


class Subject:
    """A reward of a golden, its network in parts, and the scores before anything was changed."""

    def __init__(self, name: str, folder) -> None:
        self.reward = copy.copy(REWARDS[name](folder))
        self.images = [to_tensor(picture)[None] for picture in store.load(name).pictures[1:4:2]]
        if name == "imagereward":
            self.reward.model = self.network = copy.deepcopy(self.reward.model)
        else:
            self.reward.tower = copy.copy(self.reward.tower)
            self.reward.tower.model = copy.deepcopy(self.reward.tower.model)
            self.network = getattr(self.reward.tower.model, "visual", None) if name == "aesthetic" else None
            self.network = self.network or self.reward.tower.model
        self.before = self.scores()

    @torch.no_grad()
    def scores(self) -> torch.Tensor:
        if hasattr(self.reward, "tower"):
            self.reward.tower.remembered = {}
        self.reward.prepare(store.PROMPTS)
        with sharing():
            return torch.cat([self.reward(image, [p]) for image in self.images for p in store.PROMPTS])

    def moved(self) -> float:
        return float((self.scores() - self.before).abs().max())

    def norms(self) -> list[nn.LayerNorm]:
        return [part for part in self.network.modules() if isinstance(part, nn.LayerNorm)]


@pytest.fixture(scope="module", params=REWARDS)
def subject(request, tmp_path_factory):
    return Subject(request.param, tmp_path_factory.mktemp(request.param))


@contextmanager
def changed(part: object, attribute: str, value: object) -> Iterator[None]:
    before = getattr(part, attribute)
    setattr(part, attribute, value)
    yield
    setattr(part, attribute, before)


def test_the_same_again_moves_nothing(subject):
    assert subject.moved() == 0


def test_every_bias_and_norm_has_its_effect(subject):
    unnoticed = {}
    for name, value in subject.network.named_parameters():
        if value.ndim != 1 or name.endswith(NOTHING_DEPENDS_ON):
            continue
        with changed(value, "data", torch.full_like(value, name.endswith("weight"))):
            if (moved := subject.moved()) <= TOLERANCE:
                unnoticed[name] = moved
    assert unnoticed == {}


def test_the_epsilon_of_the_norms_has_its_effect(subject):
    norms = subject.norms()
    right = [norm.eps for norm in norms]
    for wrong in {1e-5, 1e-6, 1e-12} - set(right):
        for norm in norms:
            norm.eps = wrong
        moved = subject.moved()
        for norm, eps in zip(norms, right, strict=True):
            norm.eps = eps
        assert moved > TOLERANCE, wrong


def test_no_norm_can_take_the_place_of_the_next(subject):
    for one, other in pairwise(subject.norms()):
        if one.weight.shape == other.weight.shape:
            swapped = other.weight, other.bias, one.weight, one.bias
            one.weight, one.bias, other.weight, other.bias = swapped
            moved = subject.moved()
            other.weight, other.bias, one.weight, one.bias = swapped
            assert moved > TOLERANCE


def test_each_activation_has_its_effect(subject):
    found = 0
    for part in list(subject.network.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, (QuickGELU, nn.GELU, GELUActivation)):
                with changed(part, name, nn.GELU() if isinstance(child, QuickGELU) else QuickGELU()):
                    assert subject.moved() > TOLERANCE
                found += 1
    assert found
