"""The Fréchet distance against closed forms, scipy and torchmetrics; reference pictures from everywhere."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.linalg
import torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance

from diffalign import registry
from diffalign.errors import DiffalignError
from diffalign.settings import config
from diffalign_rewards import _references
from diffalign_rewards._sets import Moments
from diffalign_rewards.fid import Fid, frechet

from .encoders import Bent, Pixels, as_pictures, colours, noise, slope


def save(folder, pictures):
    folder.mkdir(exist_ok=True)
    for k, pixels in enumerate(pictures):
        levels = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(folder / f"{k:03d}.png")
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "pictures", colours(30, 3, 2, 2, seed=1))


def gaussian(mean, covariance) -> Moments:
    """The moments of a sample that has exactly this mean and unbiased covariance."""
    n, mean = 100.0, torch.tensor(mean, dtype=torch.float64)
    covariance = torch.tensor(covariance, dtype=torch.float64)
    return Moments(torch.tensor(n), n * mean, (n - 1) * covariance + n * torch.outer(mean, mean))


def test_two_gaussians_of_commuting_covariances():
    """Per axis (m - r)^2 + (s - t)^2."""
    ours = gaussian([1.0, -2.0, 0.0], [[4.0, 0, 0], [0, 9.0, 0], [0, 0, 0.25]])
    theirs = gaussian([0.0, 1.0, 0.0], [[1.0, 0, 0], [0, 16.0, 0], [0, 0, 0.25]])
    assert float(frechet(ours, theirs)) == pytest.approx(1 + 9 + (2 - 1) ** 2 + (3 - 4) ** 2)


def test_two_gaussians_that_do_not_commute():
    """2 x 2: tr (CR)^½ = sqrt(tr CR + 2 sqrt(det CR))."""
    c, r = torch.tensor([[2.0, 1.2], [1.2, 1.0]]), torch.tensor([[1.0, -0.5], [-0.5, 3.0]])
    both = (c @ r).double()
    root = math.sqrt(float(both.trace()) + 2 * math.sqrt(float(torch.linalg.det(both))))
    found = frechet(gaussian([0.0, 0.0], c.tolist()), gaussian([0.0, 0.0], r.tolist()))
    assert float(found) == pytest.approx(float(c.trace() + r.trace()) - 2 * root, rel=1e-6)


@pytest.mark.parametrize("n", [5, 9, 200])
def test_equal_sets_have_no_distance(n):
    features = noise(n, 8)
    assert abs(float(frechet(Moments.of(features), Moments.of(features.flip(0))))) < 1e-6


@pytest.mark.parametrize("n", [6, 50])
def test_scipy_agrees(n):
    ours, theirs = Moments.of(noise(n, 8)), Moments.of(2 * noise(300, 8, seed=1) + 0.3)
    c, r = ours.covariance.numpy(), theirs.covariance.numpy()
    expected = ((ours.mean - theirs.mean) ** 2).sum() + (c + r - 2 * scipy.linalg.sqrtm(c @ r).real).trace()
    assert float(frechet(ours, theirs)) == pytest.approx(float(expected), rel=1e-6)


class Flat(torch.nn.Module):
    """`Pixels` for torchmetrics."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1)


def test_torchmetrics_agrees(folder):
    images = colours(40, 3, 2, 2)
    theirs = FrechetInceptionDistance(feature=Flat()).set_dtype(torch.float64)
    theirs.update(torch.cat(list(_references.batches(_references.find("fid", folder)))).double(), real=True)
    theirs.update(images, real=False)
    ours = Fid(Pixels(), folder).score_set(images, [""] * 40)
    assert float(ours) == pytest.approx(-float(theirs.compute()), rel=1e-6)


def test_batches_add_up_and_can_be_taken_away(folder):
    fid, features = Fid(Pixels(), folder), noise(17, 12)
    parts = [fid.statistics(part) for part in features.split([3, 10, 4])]
    whole = fid.value(fid.statistics(features))
    torch.testing.assert_close(fid.value(parts[2] + (parts[0] + parts[1])), whole)
    torch.testing.assert_close(
        fid.value(parts[0] + parts[1] + parts[2] - parts[1]), fid.value(parts[0] + parts[2])
    )


def test_higher_is_better(folder):
    fid = Fid(Pixels(), folder)
    same = torch.cat(list(_references.batches(_references.find("fid", folder)))).double()
    scores = [float(fid.score_set(same + shift, [""] * 30)) for shift in (0, 0.1, 0.2)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("n", [4, 20])
def test_gradient_is_that_of_finite_differences(folder, n):
    """Also for fewer pictures than features, where the covariance has no inverse."""
    fid = Fid(Bent(), folder)
    images, direction = colours(n, 3, 2, 2), noise(n, 3, 2, 2)
    analytic, numeric = slope(lambda x: fid.score_set(x, [""] * n), images, direction)
    assert analytic == pytest.approx(numeric, rel=1e-4)
    assert abs(analytic) > 1e-3


def test_saved_statistics_are_the_pictures(folder, tmp_path):
    images, file = colours(9, 3, 2, 2), tmp_path / "statistics.safetensors"
    Fid(Bent(), folder).save_reference(file)
    a, b = (Fid(Bent(), where).score_set(images, [""] * 9) for where in (folder, str(file)))
    assert torch.equal(a, b)


@pytest.mark.parametrize("other", [Pixels(), None])
def test_saved_statistics_of_another_encoder_are_refused(folder, tmp_path, other):
    class Skewed(Bent):
        def embed(self, images):
            return super().embed(images).flip(1)

    Fid(Bent(), folder).save_reference(tmp_path / "statistics.safetensors")
    fid = Fid(other or Skewed(), str(tmp_path / "statistics.safetensors"))
    with pytest.raises(
        DiffalignError, match=r"statistics.safetensors was measured with another encoder than"
    ):
        fid.value(fid.statistics(noise(9, 6)))


def test_a_parquet_gives_its_pictures(folder, tmp_path):
    encoded = [path.read_bytes() for path in _references.find("fid", folder)]
    for name, column in (("bare", encoded), ("structs", [{"bytes": b, "path": None} for b in encoded])):
        pq.write_table(pa.table({"label": list(range(30)), name: column}), tmp_path / f"{name}.parquet")
        paths = _references.find("fid", str(tmp_path / f"{name}.parquet"))
        expected = torch.cat(list(_references.batches(_references.find("fid", folder))))
        assert torch.equal(torch.cat(list(_references.batches(paths))), expected)


def test_the_packaged_pictures_are_called_emoji():
    first = next(_references.batches(_references.find("fid", "emoji")))
    assert first.shape == (64, 3, 64, 64)
    assert first.max() <= 1
    assert first.std() > 0.1


def test_pictures_of_different_sizes_are_taken(folder, tmp_path):
    Image.new("RGB", (5, 7), "red").save(f"{folder}/010a.png")
    shapes = [tuple(some.shape) for some in _references.batches(_references.find("fid", folder))]
    assert shapes == [(11, 3, 2, 2), (1, 3, 7, 5), (19, 3, 2, 2)]


def test_a_transparent_picture_lies_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    (picture,) = _references.batches([tmp_path / "clear.png"])
    assert bool((picture == 1).all())


def test_missing_empty_and_damaged_references_are_named(tmp_path):
    with pytest.raises(DiffalignError, match=r"fid compares with reference pictures, and /no/where does not"):
        Fid(Pixels(), "/no/where")
    with pytest.raises(DiffalignError, match=r"fid found no picture \(.bmp, .*\) in "):
        Fid(Pixels(), str(tmp_path))
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(DiffalignError, match=r"bad.png does not hold a picture, or is damaged"):
        Fid(Pixels(), str(tmp_path)).score_set(colours(3, 3, 2, 2), [""] * 3)
    pq.write_table(pa.table({"label": [1]}), tmp_path / "labels.parquet")
    with pytest.raises(DiffalignError, match="has no column of encoded pictures; its columns are label"):
        list(_references.batches([tmp_path / "labels.parquet"]))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 5, 3, 8, 8)])
def test_too_few_pictures_and_videos_are_refused(folder, shape):
    with pytest.raises(DiffalignError, match="fid judges sets of at least 2 pictures"):
        Fid(Pixels(), folder).score_set(torch.rand(shape), [""])


def test_one_colour_is_finite(folder):
    assert math.isfinite(float(Fid(Pixels(), folder).score_set(torch.zeros(4, 3, 2, 2), [""] * 4)))


def test_a_config_watches_sets_and_does_not_train_on_them():
    watched = {"name": "fid", "encoder": {"name": "emoji_clip"}, "reference": "emoji"}
    loaded = config.load("emoji-d3po", [f"eval_rewards.fid={json.dumps(watched)}"])
    spec = loaded.eval_rewards["fid"]
    assert isinstance(registry.reward(spec.name, **spec.arguments), Fid)
    with pytest.raises(DiffalignError, match="fid gives one number to a whole set of pictures"):
        config.load("emoji-d3po", [f"rewards={json.dumps([watched])}"])


def test_features_that_match_the_pictures():
    assert torch.equal(Pixels().embed(as_pictures(noise(2, 6))), noise(2, 6))
