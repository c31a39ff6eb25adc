"""What a vote points to can be trained on: kept pictures of the packaged model are re-scored as they were drawn."""

from __future__ import annotations

import pytest
import torch

from diffalign.policy import Policy
from diffalign.preferences import Pictures
from diffalign.steps import DDIM
from diffalign.walk import log_prob, rollout

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.from_pretrained("emoji", steps=4, guidance_scale=3.0)


def kept(policy: Policy, pictures: Pictures, batch) -> list[str]:
    """The ids of a rollout's pictures, each with its row."""
    with torch.no_grad():
        images = policy.decode(batch.final)
    return [
        pictures.add(image, prompt=prompt, model="emoji", trajectory=batch[[row]])
        for row, (image, prompt) in enumerate(zip(images, batch.prompts, strict=True))
    ]


def deviation(policy: Policy, batch) -> float:
    """How far log-probs are from the stored ones, in nats per dimension."""
    rows = torch.arange(len(batch))
    with torch.no_grad():
        now = [log_prob(policy, batch, rows, torch.full_like(rows, k)) for k in range(batch.steps)]
    return float((torch.stack(now, 1) - batch.log_probs).abs().max()) / batch.dim


def test_a_batch_that_is_joined_again_has_ratio_one(policy, tmp_path):
    prompts = ["red apple"] * 2 + ["smiling cat face with heart eyes"] * 2
    batch = rollout(policy, DDIM(), prompts, range(4), noise_seeds=[0, 0, 1, 1], group=[0, 0, 1, 1], batch=4)
    pictures = Pictures(tmp_path)
    joined = pictures.trajectories(kept(policy, pictures, batch))
    assert joined.group.tolist() == [0, 0, 1, 1]
    assert deviation(policy, joined) == 0


def test_pictures_of_different_days_are_joined(policy, tmp_path):
    """Prompts that were encoded by themselves, as they come in while people vote."""
    pictures, ids = Pictures(tmp_path), []
    for n, prompt in enumerate(["red apple", "smiling cat face with heart eyes", "red apple"]):
        batch = rollout(policy, DDIM(), [prompt] * 2, [n, n + 9], noise_seeds=[n, n], group=[0, 0], batch=2)
        ids += kept(policy, pictures, batch)
    joined = pictures.trajectories(ids)
    assert joined.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert deviation(policy, joined) < 1e-5
