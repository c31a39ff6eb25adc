"""Votes in the columns of Pick-a-Pic (Kirstain et al. 2023, arXiv 2305.01569): from elsewhere, and for elsewhere.

A ranking leaves as its pairs under one ranking_id. A tie and both bad are 0.5 / 0.5, so both bad comes
back as a tie. user_id is the user's name, a text, and jpg_0 and jpg_1 hold PNG: readers look at the bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from torchvision.transforms.functional import pil_to_tensor

from diffalign.errors import DiffalignError, RunError
from diffalign.preferences.store import Ballot, Store
from diffalign.preferences.vote import Vote

Row = Mapping[str, Any]
BATCH = 64
"""Rows, with their pictures, that are in memory and in one transaction at a time."""
COLUMNS = pa.schema(
    {
        "are_different": pa.bool_(),
        "best_image_uid": pa.string(),
        "caption": pa.string(),
        "created_at": pa.timestamp("us"),
        "has_label": pa.bool_(),
        "image_0_uid": pa.string(),
        "image_1_uid": pa.string(),
        "jpg_0": pa.binary(),
        "jpg_1": pa.binary(),
        "label_0": pa.float64(),
        "label_1": pa.float64(),
        "model_0": pa.string(),
        "model_1": pa.string(),
        "ranking_id": pa.int64(),
        "user_id": pa.string(),
        "num_example_per_prompt": pa.int64(),
    }
)
NEEDED = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")


@dataclass(frozen=True)
class Imported:
    """What became of a table's rows: new votes, votes that were here already, rows that are no vote."""

    new: int
    known: int
    unlabelled: int


def write_parquet(store: Store, path: Path, votes: Iterable[Vote] | None = None) -> int:
    """Write votes (all that stand, or these) and their pictures to a Parquet file; how many rows."""
    part = path.with_name(f".{path.name}.part")
    count = 0
    try:
        with pq.ParquetWriter(part, COLUMNS) as file:
            for rows in _batches(to_rows(store, votes)):
                file.write_table(pa.Table.from_pylist(rows, COLUMNS))
                count += len(rows)
        part.replace(path)
    except OSError as error:
        raise RunError(
            f"could not write {path}: {error}. The votes are untouched; free some space."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return count


def read_parquet(store: Store, path: Path) -> Imported:
    """Bring in the votes of a Parquet file; those that came before are not doubled."""
    try:
        with pq.ParquetFile(path) as file:
            return read_rows(
                store, (row for batch in file.iter_batches(BATCH) for row in batch.to_pylist()), str(path)
            )
    except (OSError, pa.ArrowException) as error:
        raise DiffalignError(f"{path} cannot be read as Parquet: {error}") from error


def to_dataset(store: Store, votes: Iterable[Vote] | None = None) -> Any:
    """A `datasets.Dataset` of votes (all that stand, or these) and their pictures."""
    with _extra():
        from datasets import Dataset
    return Dataset(pa.Table.from_pylist(list(to_rows(store, votes)), COLUMNS))


def read_dataset(store: Store, dataset: Iterable[Row]) -> Imported:
    """Bring in the votes of a `datasets` data set (also a streamed one), or of any rows in these columns."""
    return read_rows(store, dataset, "the data set")


def to_rows(store: Store, votes: Iterable[Vote] | None = None) -> Iterator[dict[str, Any]]:
    """One row for every comparison of every vote."""
    chosen = store.votes() if votes is None else list(votes)
    prompts = Counter(vote.prompt for vote in chosen for _ in vote.compared())
    for vote in chosen:
        for one, other, won in vote.compared():
            first, second = sorted((one, other), key=vote.pictures.index)
            label = won if first == one else 1 - won
            yield _row(store, vote, (first, second), label) | {"num_example_per_prompt": prompts[vote.prompt]}


def _row(store: Store, vote: Vote, pictures: Sequence[str], label: float) -> dict[str, Any]:
    """One comparison; label: 1 where the first picture won, 0 where the second, 0.5 where neither."""
    row: dict[str, Any] = {"label_0": label, "label_1": 1 - label}
    for n, picture in enumerate(pictures):
        row[f"jpg_{n}"] = store.pictures.read(picture)
        row[f"image_{n}_uid"] = store.pictures.info(picture).uid or picture
        row[f"model_{n}"] = vote.model_of(picture)
    best = {1.0: row["image_0_uid"], 0.0: row["image_1_uid"]}.get(label, "")
    return row | {
        "are_different": True,
        "best_image_uid": best,
        "caption": vote.prompt,
        "created_at": vote.time.replace(tzinfo=None),
        "has_label": True,
        "ranking_id": vote.showing,
        "user_id": vote.user,
    }


def read_rows(store: Store, rows: Iterable[Row], where: str) -> Imported:
    """Bring in rows, a batch in one transaction."""
    total, votes, new = 0, 0, 0
    for batch in _batches(rows):
        ballots = [_ballot(store, row, where) for row in batch if _labelled(row, where)]
        total, votes, new = total + len(batch), votes + len(ballots), new + store.record(ballots)
    return Imported(new, votes - new, total - votes)


def _labelled(row: Row, where: str) -> bool:
    """Whether a row is a vote between two pictures."""
    missing = [name for name in NEEDED if name not in row]
    if missing:
        raise DiffalignError(
            f"{where} lacks the columns {', '.join(missing)} of Pick-a-Pic; it has {', '.join(sorted(row))}."
        )
    return bool(row.get("has_label", True)) and bool(row.get("are_different", True))


def _ballot(store: Store, row: Row, where: str) -> Ballot:
    choices = {(1.0, 0.0): "a", (0.0, 1.0): "b", (0.5, 0.5): "tie"}
    labels = row["label_0"], row["label_1"]
    if labels not in choices:
        raise DiffalignError(f"{where} has the labels {labels}; allowed are {', '.join(map(str, choices))}.")
    pictures = [_picture(store, row, n, where) for n in (0, 1)]
    user = str(row.get("user_id") or "unknown")
    return Ballot(user, pictures, choices[labels], _token(row, pictures, user), _time(row.get("created_at")))


def _picture(store: Store, row: Row, n: int, where: str) -> str:
    content = row[f"jpg_{n}"]
    content = content["bytes"] if isinstance(content, dict) else content
    try:
        image = content if isinstance(content, Image.Image) else Image.open(BytesIO(content))
        pixels = pil_to_tensor(image.convert("RGB")) / 255
    except (UnidentifiedImageError, OSError, TypeError, ValueError) as error:
        raise DiffalignError(f"{where} has a picture in jpg_{n} that cannot be read: {error}") from error
    return store.pictures.add(
        pixels,
        prompt=row["caption"],
        model=row.get(f"model_{n}") or "unknown",
        uid=row.get(f"image_{n}_uid"),
    )


def _token(row: Row, pictures: Sequence[str], user: str) -> str:
    """The same for the same vote, however often it is read."""
    created = row.get("created_at")
    when = _time(created).timestamp() if created else None
    facts = [user, *pictures, row["label_0"], row.get("ranking_id"), when]
    return f"import-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}"


def _time(created: Any) -> datetime:
    if not isinstance(created, datetime):
        return datetime.now(UTC)
    return created if created.tzinfo else created.replace(tzinfo=UTC)


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(rows)
    while batch := list(islice(left, BATCH)):
        yield batch


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise DiffalignError("data sets need the extra: pip install 'diffalign[datasets]'.") from error
