"""Prompt sources give the same lists, and say what is wrong with a bad one."""

from __future__ import annotations

import pytest

from diffalign import prompts
from diffalign.errors import DiffalignError


def test_text_and_json_lines_give_the_same_prompts(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\n\n  an owl  \nein Bär\n", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('"a cat"\n{"prompt": "an owl", "id": 3}\n\n{"prompt": "ein Bär"}\n')
    expected = ["a cat", "an owl", "ein Bär"]
    assert prompts.load(str(tmp_path / "a.txt")) == expected
    assert prompts.load(str(tmp_path / "a.jsonl")) == expected
    assert prompts.load(str(tmp_path / "a.txt"), limit=2) == expected[:2]


def test_packaged_lists_do_not_share_prompts():
    train, held = prompts.load("animals"), prompts.load("animals-heldout")
    assert len(train) == len(set(train)) == 45
    assert train[0] == "a photo of a cat"
    assert not set(train) & set(held)


def test_a_local_dataset_is_read_by_column(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "set"
    folder.mkdir()
    datasets.Dataset.from_dict({"prompt": ["a", "b"], "text": ["c", "d"]}).to_parquet(
        str(folder / "train.parquet")
    )
    assert prompts.load(f"hf:{folder}") == ["a", "b"]
    assert prompts.load(f"hf:{folder}:train:text") == ["c", "d"]
    with pytest.raises(DiffalignError, match=r"unknown column of the dataset .*'txt'\. Did you mean 'text'"):
        prompts.load(f"hf:{folder}:train:txt")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "\n  \n", "has no prompts: it is empty"),
        ("a.jsonl", "not json\n", "a.jsonl:1 is not JSON"),
        ("a.jsonl", '"a"\n{"text": "b"}\n', "a.jsonl:2 has no prompt"),
        ("a.csv", "a", "unknown prompts"),
    ],
)
def test_bad_files_name_the_line_and_the_remedy(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    with pytest.raises(DiffalignError) as caught:
        prompts.load(str(tmp_path / name))
    assert expected in str(caught.value)


def test_missing_files_and_misspelt_lists():
    with pytest.raises(DiffalignError, match="does not exist"):
        prompts.load("nowhere.txt")
    with pytest.raises(DiffalignError, match="Did you mean 'animals'"):
        prompts.load("animal")


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("ein Bär".encode("latin-1"))
    with pytest.raises(DiffalignError, match="not UTF-8"):
        prompts.load(str(tmp_path / "a.txt"))
