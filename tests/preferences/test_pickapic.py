"""Votes leave and come in Pick-a-Pic's columns, and are the same afterwards."""

from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from place import pair, picture, voted

from diffalign.errors import DiffalignError
from diffalign.preferences import (
    Imported,
    Store,
    read_dataset,
    read_parquet,
    to_dataset,
    write_parquet,
)

PICKAPIC = {
    "are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid", "image_1_uid",
    "jpg_0", "jpg_1", "label_0", "label_1", "model_0", "model_1", "ranking_id", "user_id",
    "num_example_per_prompt",
}  # fmt: skip
"""The columns of the published data set, without the addresses of pictures on the web."""


@pytest.fixture
def other(tmp_path):
    store = Store.open(tmp_path / "other.db")
    yield store
    store.close()


def fill(store):
    """A vote of every kind, by two users on two models."""
    for n, choice in enumerate(["a", "b", "tie"]):
        voted(store, "ann", choice, pair(store, n, ("base", "tuned")))
    ids = [picture(store, 20 + n, prompt="a dog") for n in range(3)]
    store.vote(store.show("bob é", ids, "ranking"), "bob é", [ids[2], ids[0], ids[1]])
    voted(store, "ann", "a", pair(store, 9))
    store.undo("ann")


def comparisons(store):
    """Every comparison as anybody sees it: no ids, which depend on where the pictures came from."""
    return [
        (vote.user, vote.prompt, vote.time, vote.model_of(x), vote.model_of(y), won,
         store.pictures.image(x).tolist(), store.pictures.image(y).tolist())
        for vote in store.votes() for x, y, won in vote.compared()
    ]  # fmt: skip


def test_there_and_back_through_parquet(store, other, tmp_path):
    fill(store)
    assert write_parquet(store, tmp_path / "votes.parquet") == 6
    assert read_parquet(other, tmp_path / "votes.parquet") == Imported(new=6, known=0, unlabelled=0)
    assert comparisons(other) == comparisons(store)
    write_parquet(other, tmp_path / "again.parquet")
    first, second = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("votes", "again"))
    for one, two in zip(first, second, strict=True):
        same = PICKAPIC - {"jpg_0", "jpg_1", "ranking_id"}
        assert {k: one[k] for k in same} == {k: two[k] for k in same}


def test_there_and_back_through_datasets(store, other):
    pytest.importorskip("datasets")
    fill(store)
    assert read_dataset(other, to_dataset(store)).new == 6
    assert comparisons(other) == comparisons(store)


def test_nothing_comes_in_twice(store, other, tmp_path):
    fill(store)
    write_parquet(store, tmp_path / "votes.parquet")
    read_parquet(other, tmp_path / "votes.parquet")
    assert read_parquet(other, tmp_path / "votes.parquet") == Imported(new=0, known=6, unlabelled=0)
    assert other.count() == 6


def test_columns_and_labels_are_pick_a_pics(store, tmp_path):
    fill(store)
    write_parquet(store, tmp_path / "votes.parquet")
    table = pq.read_table(tmp_path / "votes.parquet")
    assert set(table.column_names) == PICKAPIC
    rows = table.to_pylist()
    assert [(row["label_0"], row["label_1"]) for row in rows[:3]] == [(1, 0), (0, 1), (0.5, 0.5)]
    best = [row["best_image_uid"] for row in rows[:3]]
    assert best == [rows[0]["image_0_uid"], rows[1]["image_1_uid"], ""]
    assert [row["num_example_per_prompt"] for row in rows] == [3] * 6
    assert len({row["ranking_id"] for row in rows[3:]}) == 1
    assert Image.open(BytesIO(rows[0]["jpg_0"])).size == (4, 4)


def test_some_votes_alone_are_written(store, tmp_path):
    fill(store)
    assert write_parquet(store, tmp_path / "votes.parquet", store.votes(users="ann")) == 3


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def row(**other):
    """A row as the published data set has it."""
    return {
        "are_different": True, "best_image_uid": "u1", "caption": "a fox", "created_at": datetime(2023, 1, 2),
        "has_label": True, "image_0_uid": "u0", "image_0_url": "https://host/0", "image_1_uid": "u1",
        "image_1_url": "https://host/1", "jpg_0": jpeg(0), "jpg_1": jpeg(1), "label_0": 0.0, "label_1": 1.0,
        "model_0": "sdxl", "model_1": "dreamlike", "ranking_id": 12, "user_id": 345, "num_example_per_prompt": 1,
    } | other  # fmt: skip


def test_rows_from_elsewhere_become_votes(other, tmp_path):
    rows = [row(), row(has_label=False, ranking_id=13), row(are_different=False, ranking_id=14)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pickapic.parquet")
    assert read_parquet(other, tmp_path / "pickapic.parquet") == Imported(new=1, known=0, unlabelled=2)
    (vote,) = other.votes()
    assert (vote.user, vote.prompt, vote.choice, vote.models) == ("345", "a fox", "b", ("sdxl", "dreamlike"))
    assert vote.time == datetime(2023, 1, 2, tzinfo=UTC)
    assert [other.pictures.info(p).uid for p in vote.pictures] == ["u0", "u1"]
    read = np.asarray(Image.open(BytesIO(jpeg(1))))
    assert torch.equal(
        other.pictures.image(vote.pictures[1]).mul(255).round().byte().permute(1, 2, 0), torch.tensor(read)
    )
    with pytest.raises(DiffalignError, match="D3PO needs trajectories"):
        other.pictures.trajectories(vote.pictures)


def test_few_columns_are_enough(other):
    needed = {k: row()[k] for k in ("caption", "jpg_0", "jpg_1", "label_0", "label_1")}
    assert read_dataset(other, [needed]).new == 1
    assert read_dataset(other, [needed]).known == 1
    (vote,) = other.votes()
    assert (vote.user, vote.models) == ("unknown", ("unknown", "unknown"))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "a fox"}], "lacks the columns caption, jpg_0.*it has prompt"),
        ([row(), row(label_0=0.7, label_1=0.3)], r"labels \(0.7, 0.3\); allowed are \(1.0, 0.0\)"),
        ([row(jpg_1=b"no picture")], "picture in jpg_1 that cannot be read"),
        ([row(jpg_1=None)], "picture in jpg_1 that cannot be read"),
    ],
)
def test_what_is_not_pick_a_pic_is_said_and_nothing_comes_in(other, rows, says):
    with pytest.raises(DiffalignError, match=says):
        read_dataset(other, rows)
    assert other.count() == 0


def test_what_is_not_parquet_is_said(other, tmp_path):
    (tmp_path / "votes.parquet").write_text("no table")
    for path in (tmp_path / "votes.parquet", tmp_path / "missing.parquet"):
        with pytest.raises(DiffalignError, match="cannot be read as Parquet"):
            read_parquet(other, path)


def test_a_stopped_export_leaves_the_old_file(store, tmp_path):
    fill(store)
    path = tmp_path / "votes.parquet"
    path.write_text("the old one")
    store.pictures.path(store.votes()[2].pictures[0]).unlink()
    with pytest.raises(DiffalignError, match="is missing"):
        write_parquet(store, path)
    assert path.read_text() == "the old one"
    assert [p.name for p in tmp_path.glob("*parquet*")] + [p.name for p in tmp_path.glob(".*part")] == [
        "votes.parquet"
    ]
