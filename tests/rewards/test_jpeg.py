"""The JPEG rewards measure real files."""

import torch
from PIL import Image

from diffalign_rewards.jpeg_compressibility import jpeg_compressibility
from diffalign_rewards.jpeg_incompressibility import jpeg_incompressibility


def test_size_is_that_of_the_file_on_disk(tmp_path):
    images = torch.rand(2, 3, 40, 56)
    for image, size in zip(images, jpeg_incompressibility(images, ["", ""]), strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95)
        assert round(float(size) * 1000) == (tmp_path / "x.jpg").stat().st_size


def test_noise_is_larger_than_one_colour_and_the_signs_are_opposite():
    images = torch.stack([torch.rand(3, 32, 32), torch.full((3, 32, 32), 0.5)])
    size = jpeg_incompressibility(images, ["", ""])
    assert size[0] > 2 * size[1]
    torch.testing.assert_close(jpeg_compressibility(images, ["", ""]), -size)
