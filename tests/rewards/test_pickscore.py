"""PickScore: folders as published, and folders that lack something."""

from __future__ import annotations

import pytest
import torch
from golden import store, tiny
from torchvision.transforms.functional import to_tensor

from diffalign.reward import DiffalignError
from diffalign_rewards import _hugging_face
from diffalign_rewards.pickscore import PickScore

GOLDEN = store.load("pickscore")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_folders_with_pytorch_weights_give_the_official_scores(tmp_path):
    tiny.pickscore(tmp_path)
    _hugging_face.from_folder.cache_clear()
    (tmp_path / "model.safetensors").unlink()
    torch.save(GOLDEN.weights, tmp_path / "pytorch_model.bin")
    ours = PickScore(str(tmp_path))(to_tensor(GOLDEN.pictures[2]).expand(5, -1, -1, -1), store.PROMPTS)
    torch.testing.assert_close(ours, GOLDEN.scores["score"][2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_folder_that_lacks_a_file_is_refused(name, tmp_path):
    tiny.pickscore(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DiffalignError, match=r"pickscore needs .* of the Hugging Face repository"):
        PickScore(str(tmp_path))


def test_a_folder_without_vocabulary_is_refused(tmp_path):
    tiny.pickscore(tmp_path)
    _hugging_face.from_folder.cache_clear()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(DiffalignError, match="the vocabulary is missing"):
        PickScore(str(tmp_path))


def test_missing_weights_are_not_made_up(tmp_path):
    tiny.pickscore(tmp_path)
    _hugging_face.from_folder.cache_clear()
    kept = {name: value for name, value in GOLDEN.weights.items() if "text_projection" not in name}
    (tmp_path / "model.safetensors").unlink()
    torch.save(kept, tmp_path / "pytorch_model.bin")
    with pytest.raises(DiffalignError, match=r"weights are missing: .*text_projection"):
        PickScore(str(tmp_path))
