"""The kernel distance against its definition and torchmetrics, and that it is unbiased."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from diffalign.errors import DiffalignError
from diffalign_rewards import _references
from diffalign_rewards.kid import Kid, mmd2

from .encoders import Bent, Pixels, colours, noise, slope
from .test_fid import Flat, save


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "pictures", colours(30, 3, 2, 2, seed=1))


def references(folder):
    return torch.cat(list(_references.batches(_references.find("kid", folder)))).double()


def test_the_definition_pair_by_pair():
    x, y = noise(4, 3), noise(5, 3, seed=1)

    def k(a, b):
        return float((0.7 * a @ b + 1) ** 3)

    within = [
        sum(k(a, b) for a in z for b in z if a is not b) / (len(z) * (len(z) - 1)) for z in map(list, (x, y))
    ]
    across = sum(k(a, b) for a in x for b in y) / 20
    assert float(mmd2(x, y, 0.7)) == pytest.approx(sum(within) - 2 * across)


@pytest.mark.parametrize("gamma", [1.0, None])
def test_torchmetrics_agrees(folder, gamma):
    images = colours(30, 3, 2, 2)
    theirs = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=30, gamma=gamma)
    theirs.update(references(folder), real=True)
    theirs.update(images, real=False)
    expected = -float(theirs.compute()[0])
    for size in (None, 30):
        found = Kid(Pixels(), folder, gamma, subset_size=size, subsets=2).score_set(images, [""] * 30)
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_it_is_unbiased():
    """Halves of one distribution: the mean over many splits is 0 within its error, and positive otherwise."""
    draws = torch.stack([mmd2(*noise(40, 4, seed=s).split(20), 1.0) for s in range(300)])
    error = float(draws.std() / 300**0.5)
    assert abs(float(draws.mean())) < 3 * error
    shifted = torch.stack(
        [mmd2(noise(20, 4, seed=s), noise(20, 4, seed=s + 1000) + 0.3, 1.0) for s in range(300)]
    )
    assert float(shifted.mean()) > 5 * float(shifted.std() / 300**0.5)


def test_subsets_estimate_the_whole(folder):
    images = colours(30, 3, 2, 2) * 0.8
    whole = float(Kid(Pixels(), folder).score_set(images, [""] * 30))
    some = Kid(Pixels(), folder, subset_size=15, subsets=200)
    found = float(some.score_set(images, [""] * 30))
    assert found == pytest.approx(whole, rel=0.1)
    assert found == float(some.score_set(images, [""] * 30)), "not repeatable"


def test_batches_add_up_in_any_order(folder):
    kid, features = Kid(Pixels(), folder), noise(17, 12)
    parts = [kid.statistics(part) for part in features.split([3, 10, 4])]
    whole = kid.value(kid.statistics(features))
    torch.testing.assert_close(kid.value(parts[2] + (parts[0] + parts[1])), whole)


def test_higher_is_better(folder):
    kid, same = Kid(Pixels(), folder), references(folder)
    scores = [float(kid.score_set(same + shift, [""] * 30)) for shift in (0, 0.1, 0.2)]
    assert scores == sorted(scores, reverse=True)


def test_gradient_is_that_of_finite_differences(folder):
    kid = Kid(Bent(), folder)
    images, direction = colours(5, 3, 2, 2), noise(5, 3, 2, 2)
    analytic, numeric = slope(lambda x: kid.score_set(x, [""] * 5), images, direction)
    assert analytic == pytest.approx(numeric, rel=1e-5)
    assert abs(analytic) > 1e-3


def test_saved_statistics_are_the_pictures(folder, tmp_path):
    images, file = colours(9, 3, 2, 2), tmp_path / "statistics.safetensors"
    Kid(Bent(), folder).save_reference(file)
    a, b = (Kid(Bent(), where).score_set(images, [""] * 9) for where in (folder, str(file)))
    assert torch.equal(a, b)


def test_statistics_of_fid_are_refused(folder, tmp_path):
    from diffalign_rewards.fid import Fid

    Fid(Bent(), folder).save_reference(tmp_path / "statistics.safetensors")
    with pytest.raises(DiffalignError, match="does not hold statistics that kid's save_reference wrote"):
        Kid(Bent(), str(tmp_path / "statistics.safetensors")).score_set(colours(4, 3, 2, 2), [""] * 4)


def test_too_few_pictures_are_refused(folder):
    with pytest.raises(DiffalignError, match="kid judges sets of at least 2 pictures"):
        Kid(Pixels(), folder).score_set(colours(1, 3, 2, 2), [""])
    with pytest.raises(DiffalignError, match="compares 10 pictures a side, and there are 4 and 30 reference"):
        Kid(Pixels(), folder, subset_size=10).score_set(colours(4, 3, 2, 2), [""] * 4)
    with pytest.raises(DiffalignError, match="at least 1 subset of at least 2 pictures; these are 100 of 1"):
        Kid(Pixels(), folder, subset_size=1)
