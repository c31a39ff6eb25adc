"""What holds for every reward over a CLIP tower, each on the official checkpoint format of its golden."""

from __future__ import annotations

import copy

import pytest
import torch
from golden import store, tiny
from huggingface_hub import constants
from torchvision.transforms.functional import to_tensor

from diffalign.reward import DiffalignError, sharing
from diffalign_rewards import _clip
from diffalign_rewards.aesthetic import Aesthetic
from diffalign_rewards.clip import Clip
from diffalign_rewards.hpsv2 import HPSv2
from diffalign_rewards.pickscore import PickScore

PROMPTS = store.PROMPTS
SMOOTH = {"clip": 2e-3, "aesthetic": 0.02, "hpsv2": 1e-6, "pickscore": 0.6}
"""How far scores move where nothing is rounded, on these small models; PickScore's scores are up to 43 here."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=tiny.REWARDS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def reward(name, tmp_path_factory):
    return tiny.REWARDS[name](tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def golden(name):
    """Pictures (1, 3, H, W) and their official scores (pictures, prompts)."""
    stored = store.load(name)
    scores = stored.scores["cosine" if name == "clip" else "score"]
    table = scores if scores.ndim == 2 else scores[:, None].expand(-1, len(PROMPTS))
    return [to_tensor(picture)[None] for picture in stored.pictures], table


@pytest.fixture
def calls(reward, monkeypatch):
    """How often each tower is asked."""
    counts = {"encode_image": 0, "encode_text": 0}
    for method in counts:
        monkeypatch.setattr(reward.tower.model, method, counted(counts, method, reward.tower.model))
    monkeypatch.setattr(reward.tower, "remembered", {})
    return counts


def counted(counts, method, model):
    original = getattr(model, method)

    def count(*arguments):
        counts[method] += 1
        return original(*arguments)

    return count


def table(reward, images):
    """Scores (1, prompts) of one picture for every prompt."""
    with sharing():
        return torch.stack([reward(images, [prompt]) for prompt in PROMPTS], 1).detach()


def test_scores_are_the_official_ones(reward, golden):
    ours = torch.cat([table(reward, images) for images in golden[0]])
    torch.testing.assert_close(ours, golden[1], atol=1e-4, rtol=0)


def test_the_smooth_path_is_close_to_the_official_scores(reward, golden, name):
    ours = torch.cat([table(reward, images.clone().requires_grad_()) for images in golden[0]])
    torch.testing.assert_close(ours, golden[1], atol=SMOOTH[name], rtol=0)


def test_gradient_is_that_of_finite_differences(reward, golden):
    reward = copy.copy(reward)
    reward.tower = copy.deepcopy(reward.tower)
    reward.tower.model.double()
    if hasattr(reward, "head"):
        reward.head = copy.deepcopy(reward.head).double()
    images = golden[0][4].double().clamp(0.1, 0.9).requires_grad_()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:1]).sum(), images)
    ends = [reward(images + step * direction, PROMPTS[:1]).detach() for step in (1e-6, -1e-6)]
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-3)


def test_gradient_reaches_the_pixels(reward, golden):
    images = (0.02 + 0.96 * golden[0][2]).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:1]).sum(), images)
    assert float((gradient != 0).any(1).float().mean()) > 0.95


def test_every_prompt_is_read_once(reward, golden, calls, name):
    images = golden[0][2].repeat(3, 1, 1, 1)
    prompts = ["a cat", "a dog", "a cat"]
    reward.prepare(prompts)
    first = reward(images, prompts)
    assert torch.equal(reward(images, prompts), first)
    assert calls["encode_text"] == (0 if name == "aesthetic" else 1)


def test_old_prompts_are_forgotten(reward, calls, monkeypatch):
    monkeypatch.setattr(_clip, "REMEMBERED", 2)
    features = reward.tower.texts(["a", "b", "c"])
    assert list(reward.tower.remembered) == ["b", "c"]
    torch.testing.assert_close(reward.tower.texts(["a"]), features[:1])


def test_pictures_are_looked_at_once_within_sharing(reward, golden, calls):
    other, images = copy.copy(reward), golden[0][2]
    with sharing():
        assert torch.equal(reward(images, ["a cat"]), other(images, ["a cat"]))
        reward.embed(images)
        assert calls["encode_image"] == 1
        reward(images.clone(), ["a cat"])
        assert calls["encode_image"] == 2
    reward(images, ["a cat"])
    assert calls["encode_image"] == 3


def test_embedding_is_of_unit_length(reward, golden):
    assert float(reward.embed(golden[0][0]).norm()) == pytest.approx(1, abs=1e-6)


def test_a_score_does_not_depend_on_the_rest_of_the_batch(reward, golden):
    images = torch.cat([golden[0][2], 1 - golden[0][2], golden[0][2].flip(-1)])
    together = reward(images, PROMPTS[:3])
    alone = [reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


MISSING = {
    Clip: "hf download timm/vit_large_patch14_clip_224.openai open_clip_model.safetensors`.*path: FILE",
    Aesthetic: "hf download timm/vit_large_patch14_clip_224.openai open_clip_model.safetensors`.*tower: FILE",
    HPSv2: "hf download xswu/HPSv2 HPS_v2_compressed.pt`.*path: FILE",
    PickScore: "hf download yuvalkirstain/PickScore_v1`.*path: FOLDER",
}


@pytest.mark.parametrize("kind", MISSING)
def test_without_weights_the_error_says_what_to_fetch(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DiffalignError, match=MISSING[kind]):
        kind()
