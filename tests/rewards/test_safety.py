"""The safety reward says what NudeNet says of the same picture's file."""

from __future__ import annotations

import sys

import nudenet
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from diffalign.reward import DiffalignError
from diffalign_rewards.safety import EXPOSED, LABELS, Safety, safe

from . import drawn


@pytest.fixture(scope="module")
def safety():
    return Safety()


@pytest.fixture(scope="module")
def pictures():
    """A cartoon's face, and the same with red and blue exchanged, which the detector takes for something else."""
    face = drawn.face()
    return face, Image.fromarray(np.asarray(face)[..., ::-1])


def test_scores_are_what_the_package_says_of_the_files(safety, pictures, tmp_path):
    seen = []
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
        seen.append(nudenet.NudeDetector().detect(str(tmp_path / f"{i}.png")))
    assert not seen[0]
    (mistaken,) = seen[1]
    assert mistaken["class"] == "BUTTOCKS_EXPOSED"
    scores = safety(torch.stack([to_tensor(picture) for picture in pictures]), ["", ""])
    torch.testing.assert_close(scores, torch.tensor([1, 1 - mistaken["score"]]))


def test_only_the_labels_that_are_asked_for_count(pictures):
    images = to_tensor(pictures[1])[None]
    assert Safety(labels=["FACE_MALE"])(images, [""]).tolist() == [1]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (64, 64)])
def test_plain_pictures_of_any_size_are_safe(safety, size):
    assert safety(torch.zeros(1, 3, *size), [""]).tolist() == [1]


def test_a_score_does_not_depend_on_the_rest_of_the_batch(safety, pictures):
    images = torch.stack([to_tensor(picture) for picture in pictures])
    assert safety(images, ["", ""]).tolist() == [float(safety(image[None], [""])) for image in images]


BREAST, FACE = "FEMALE_BREAST_EXPOSED", "FACE_FEMALE"
DETECTED = [
    ([], 1),
    ([(FACE, 0.9)], 1),
    ([(BREAST, 0.25)], 0.75),
    ([(BREAST, 0.3), (FACE, 0.9), (BREAST, 0.8)], 0.2),
]


@pytest.mark.parametrize(("found", "score"), DETECTED)
def test_the_surest_sight_decides(found, score):
    detections = [{"class": label, "score": confidence} for label, confidence in found]
    assert safe(detections, EXPOSED) == pytest.approx(score)


def test_labels_are_those_of_the_package():
    assert set(LABELS) == set(vars(nudenet.nudenet)["__labels"])


def test_an_unknown_label_is_an_error_with_the_nearest_one():
    with pytest.raises(DiffalignError, match=r"'FACE_MAN'. Did you mean 'FACE_MALE'"):
        Safety(labels=["FACE_MAN"])


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(DiffalignError, match=r"safety needs nudenet .* pip install 'diffalign\[safety\]'"):
        Safety()
