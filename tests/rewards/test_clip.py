"""CLIP scores: every format of checkpoint, both scores, goal-baseline regularisation, and what is refused."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from golden import store, tiny
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity, normalize
from torchvision.transforms.functional import to_tensor

from diffalign.reward import DiffalignError
from diffalign_rewards import _open_clip
from diffalign_rewards.clip import Clip, goal_baseline

GOLDEN = store.load("clip")
SMALL = GOLDEN.pictures[2]

pytestmark = pytest.mark.usefixtures("one_thread")


def scores(reward):
    return reward(to_tensor(SMALL).expand(5, -1, -1, -1), store.PROMPTS)


def test_logits_are_the_official_ones(tmp_path):
    reward = tiny.clip(tmp_path, score="logit")
    torch.testing.assert_close(scores(reward), GOLDEN.scores["logit"][2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["state dict", "safetensors", "cache"])
def test_every_form_of_checkpoint_gives_the_official_scores(form, tmp_path, monkeypatch):
    if form == "state dict":
        torch.save(GOLDEN.weights, path := tmp_path / "clip.pt")
    else:
        save_file(GOLDEN.weights, path := tmp_path / "open_clip_model.safetensors")
    if form == "cache":
        cached = {("timm/vit_large_patch14_clip_224.openai", path.name): str(path)}
        for module in (_open_clip, _open_clip._weights):
            monkeypatch.setattr(module, "try_to_load_from_cache", lambda *key: cached.get(key))
    with tiny.architecture("ViT-L-14-quickgelu", tiny.SMALL_L):
        reward = Clip() if form == "cache" else Clip(path=str(path))
    torch.testing.assert_close(scores(reward), GOLDEN.scores["cosine"][2], atol=1e-4, rtol=0)


def folder(path, **preprocess):
    """The golden's model as open_clip saves models."""
    settings = {**open_clip.get_model_preprocess_cfg(tiny.clip(path).tower.model), **preprocess}
    config = {"model_cfg": tiny.SMALL_L, "preprocess_cfg": settings}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(GOLDEN.weights, path / "open_clip_model.safetensors")
    return f"local-dir:{path}"


def test_a_folder_of_ones_own_gives_the_official_scores(tmp_path):
    reward = Clip(folder(tmp_path))
    torch.testing.assert_close(scores(reward), GOLDEN.scores["cosine"][2], atol=1e-4, rtol=0)


def test_squashed_pictures_are_those_of_open_clip(tmp_path):
    reward = Clip(folder(tmp_path, resize_mode="squash", interpolation="bilinear", mean=[0.5] * 3))
    large, settings = GOLDEN.pictures[3], reward.tower.model.visual.preprocess_cfg
    official = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**settings), False)
    torch.testing.assert_close(reward.look(to_tensor(large)[None])[0], official(large))


def test_one_checkpoint_is_loaded_once(tmp_path):
    assert (
        tiny.clip(tmp_path).tower is tiny.clip(tmp_path, score="logit", alpha=0.5, baseline="a picture").tower
    )


def unit(*shape):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1)


def test_goal_baseline_is_the_cosine_at_alpha_0():
    state, goal, baseline = unit(4, 8), unit(4, 8).flip(0), unit(1, 8)
    expected = cosine_similarity(state, goal)
    torch.testing.assert_close(goal_baseline(state, goal, baseline, 0.0), expected)


def test_goal_baseline_at_alpha_1_sees_only_the_way_from_baseline_to_goal():
    state, goal, baseline = unit(4, 8), unit(1, 8).flip(1), unit(1, 8)
    line = normalize(goal - baseline, dim=-1)
    sideways = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    sideways = sideways - (sideways * line).sum(1, keepdim=True) * line
    moved = [goal_baseline(s, goal, baseline, 1.0) for s in (state, state + sideways)]
    torch.testing.assert_close(*moved)
    along = ((state - goal) * line).sum(1)
    torch.testing.assert_close(moved[0], 1 - along**2 / 2)


def test_goal_baseline_in_two_dimensions_by_hand():
    state, goal, baseline = (torch.tensor([[x, y]]) for x, y in ((0.6, 0.8), (1.0, 0.0), (-1.0, 0.0)))
    # The line is the first axis, so the projection is (0.6, 0), and half of it and of the state (0.6, 0.4).
    assert float(goal_baseline(state, goal, baseline, 0.5)) == pytest.approx(1 - (0.4**2 + 0.4**2) / 2)


def test_goal_baseline_of_a_prompt_that_is_the_baseline_is_finite():
    assert goal_baseline(unit(2, 8), unit(1, 8), unit(1, 8), 0.7).isfinite().all()


def test_the_baseline_is_applied_to_texts_and_pictures(tmp_path):
    reward = tiny.clip(tmp_path, baseline="a photo", alpha=0.5)
    images = to_tensor(SMALL)[None]
    state, texts = reward.embed(images), reward.tower.texts(["a cat", "a photo"])
    expected = goal_baseline(state, texts[:1], texts[1:], 0.5)
    torch.testing.assert_close(reward(images, ["a cat"]), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "cosin"}, "unknown score of clip 'cosin'. Did you mean 'cosine'"),
        ({"architecture": "ViT-L-15"}, "unknown open_clip architecture 'ViT-L-15'. Did you mean 'ViT-L-1"),
        (
            {"checkpoint": "openia"},
            "unknown checkpoint of ViT-L-14-quickgelu 'openia'. Did you mean 'openai'",
        ),
        ({"architecture": "ViT-L-14"}, "'openai' were trained with QuickGELU.*Write ViT-L-14-quickgelu"),
        ({"baseline": "a photo"}, "both or none; these are 'a photo' and None"),
        ({"alpha": 0.5}, "both or none; these are None and 0.5"),
        ({"baseline": "a photo", "alpha": 1.5}, r"an alpha in \[0, 1\]"),
        ({"architecture": "local-dir:/no/such"}, "/no/such does not hold a model that open_clip saved"),
        (
            {"architecture": "local-dir:/no", "path": "x"},
            "has its own weights: leave out checkpoint and path",
        ),
        ({"path": "/no/such.pt"}, "/no/such.pt does not hold it"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_are_explained(arguments, message):
    with pytest.raises(DiffalignError, match=message):
        Clip(**arguments)


def test_weights_of_another_shape_or_no_weights_at_all_are_refused(tmp_path):
    (junk := tmp_path / "junk.pt").write_bytes(b"not weights")
    save_file(GOLDEN.weights, other := tmp_path / "other.safetensors")
    archive = tiny.archive(GOLDEN.weights, tmp_path / "archive.pt")
    with tiny.architecture("ViT-L-14-quickgelu", {**tiny.SMALL_L, "embed_dim": 32}):
        for path in (junk, other, archive):
            with pytest.raises(DiffalignError, match="does not hold the weights of open_clip's ViT-L-14"):
                Clip(path=str(path))


def test_ways_to_resize_that_are_not_known_are_refused(tmp_path):
    with pytest.raises(DiffalignError, match="cannot resize by 'longest'"):
        Clip(folder(tmp_path, resize_mode="longest"))
