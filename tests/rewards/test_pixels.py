"""Preprocessing on tensors is that of PIL, torchvision and transformers."""

from __future__ import annotations

import pytest
import torch
from golden import store
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
from torchvision.transforms.functional import InterpolationMode as Modes
from torchvision.transforms.functional import to_tensor
from transformers import CLIPImageProcessorPil

from diffalign_rewards import _pixels
from diffalign_rewards._clip import Resized

PICTURES = store.awkward()
NORMALISE = Normalize(_pixels.CLIP_MEAN, _pixels.CLIP_STD)
SMOOTH = 1.1 / 255
"""How far from PIL's pixels the smooth path may be: it skips two roundings of half a level each."""


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (40, 31), (150, 90), (48, 160)], ids=str)
@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: str(p.size))
def test_resize_is_that_of_pil(picture, size, mode):
    # Two calls, as Pillow 13 takes the rows first where a picture is squeezed down; all before took columns.
    pil, kernel = picture, Image.Resampling[mode.upper()]
    for sides in ((size[1], picture.height), size[::-1]):
        pil = pil.resize(sides, kernel)
    pil = to_tensor(pil)
    images = to_tensor(picture)[None]
    assert torch.equal(_pixels.resize(images, size, mode)[0], pil)
    smooth = _pixels.resize(images.requires_grad_(), size, mode)[0].detach()
    assert float((smooth - pil).abs().max()) <= SMOOTH


def test_gradient_of_resize_is_that_of_finite_differences():
    images = torch.rand(1, 1, 6, 5, dtype=torch.float64) * 0.4 + 0.3
    images = images.requires_grad_()
    for mode in ("bicubic", "bilinear"):
        for size in ((3, 9), (8, 2)):
            assert torch.autograd.gradcheck(_pixels.resize, (images, size, mode))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: str(p.size))
def test_looks_are_the_official_preprocessing(picture):
    images = to_tensor(picture)[None]
    openai = Compose([Resize(224, Modes.BICUBIC), CenterCrop(224), ToTensor(), NORMALISE])(picture)
    hugging_face = CLIPImageProcessorPil()(picture, return_tensors="pt").pixel_values[0]
    for look, official in ((Resized(), openai), (Resized(offset=int), hugging_face)):
        assert float((look(images)[0] - official).abs().max()) <= 2e-6
        smooth = look(images.clone().requires_grad_())[0].detach()
        assert float((smooth - official).abs().max()) <= SMOOTH / min(_pixels.CLIP_STD)


def test_the_two_ways_to_crop_differ_where_half_a_pixel_is_left():
    images = torch.arange(227.0).expand(1, 3, 224, 227) / 255
    torchvision, transformers = (_pixels.center_crop(images, 224, offset) for offset in (round, int))
    assert float(torchvision[0, 0, 0, 0] * 255) == pytest.approx(2)
    assert float(transformers[0, 0, 0, 0] * 255) == pytest.approx(1)


def test_pictures_of_the_wanted_size_are_rounded_like_others():
    images = torch.full((1, 3, 8, 8), 100.4 / 255)
    torch.testing.assert_close(_pixels.resize(images, (8, 8)) * 255, torch.full_like(images, 100))
    images.requires_grad_()
    torch.testing.assert_close(_pixels.resize(images, (8, 8)), images)
