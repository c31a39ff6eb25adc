"""Step `data`: two npm packages become one table of captioned 64×64 pictures with fixed splits."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PACKAGES = {"flat": "emoji-datasource-google@16", "3d": "@lobehub/fluent-emoji-3d@1.1"}
FOLDERS = {"flat": "package/img/google/64", "3d": "package/assets"}
HELD_OUT, CLIP_SHARE, LONGEST = 64, 0.1, 9


def fetch(folder: Path) -> dict[str, Path]:
    """Downloads and unpacks both packages with `npm pack`; the unpacked folder of each style."""
    for style, package in PACKAGES.items():
        target = folder / style
        if target.exists():
            continue
        packed = subprocess.run(
            ["npm", "pack", "--json", package], cwd=_made(folder), check=True, capture_output=True, text=True
        )
        with tarfile.open(folder / json.loads(packed.stdout)[0]["filename"]) as archive:
            archive.extractall(target, filter="data")
    return {style: folder / style for style in PACKAGES}


def build(out: Path, downloads: Path) -> Path:
    """Writes `pictures.parquet` and the two prompt lists into `out`."""
    rows = list(pictures(fetch(downloads)))
    split = splits(rows)
    for row in rows:
        row["split"] = split[str(row["name"])]
    path = _made(out) / "pictures.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none")
    _prompts(_made(out / "prompts"), rows)
    return path


def pictures(roots: dict[str, Path]) -> Iterator[dict[str, object]]:
    """One row per picture, in the order of the Noto table: all emoji but flags, flat before 3d."""
    table = json.loads((roots["flat"] / "package/emoji.json").read_text())
    for entry in table:
        if entry["category"] == "Flags" or not entry["has_img_google"]:
            continue
        for style in PACKAGES:
            if (path := _file(roots, style, entry)) is not None:
                yield {
                    "name": entry["name"].lower(),
                    "style": style,
                    "code": entry["unified"],
                    "category": entry["category"],
                    "webp": webp(lay(path)),
                }


def _file(roots: dict[str, Path], style: str, entry: dict[str, str]) -> Path | None:
    """The picture of an emoji; Fluent file names are code points, at times without `-fe0f`."""
    code, folder = entry["unified"].lower(), roots[style] / FOLDERS[style]
    names = [entry["image"]] if style == "flat" else [f"{code}.webp", f"{code.replace('-fe0f', '')}.webp"]
    return next((folder / name for name in names if (folder / name).exists()), None)


def lay(path: Path) -> Image.Image:
    """The picture at 64×64 (Lanczos), laid on white."""
    picture = Image.open(path).convert("RGBA").resize((64, 64), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def webp(picture: Image.Image) -> bytes:
    """WebP at quality 95: a third of the bytes of PNG, and no difference to the eye."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=95, method=6)
    return buffer.getvalue()


def splits(rows: list[dict[str, object]]) -> dict[str, str]:
    """The split of every name: `clip_test`, `align_test` or `train`, by the order of a hash of the name.

    `clip_test` is the first tenth of all names. `align_test` is the first 64 of the others that a reader
    can picture: drawn in both styles, three words at most, neither people nor symbols, and every word in
    use by at least two names that are in none of the two.
    """
    names = sorted({str(row["name"]) for row in rows}, key=_hash)
    unseen = names[: round(CLIP_SHARE * len(names))]
    rest, test = names[len(unseen) :], list[str]()
    uses = Counter(word for name in rest for word in set(words(name)))
    for name in _depictable(rows, rest):
        if len(test) < HELD_OUT and all(uses[word] > 2 for word in words(name)):
            test.append(name)
            uses.subtract(set(words(name)))
    return (
        dict.fromkeys(names, "train") | dict.fromkeys(unseen, "clip_test") | dict.fromkeys(test, "align_test")
    )


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def words(text: str) -> list[str]:
    """The words of a caption as the tokenizer sees them."""
    return re.findall("[a-z0-9]+", text.lower())


def _depictable(rows: list[dict[str, object]], names: list[str]) -> list[str]:
    """The names of at most three words that are things, animals or faces drawn in both styles."""
    abstract = {"Symbols", "People & Body", "Component"}
    styles: dict[str, set[object]] = {}
    for row in rows:
        if row["category"] not in abstract:
            styles.setdefault(str(row["name"]), set()).add(row["style"])
    return [name for name in names if len(styles.get(name, ())) == 2 and len(words(name)) <= 3]


def _prompts(folder: Path, rows: list[dict[str, object]]) -> None:
    """Prompts without a style word: `heldout.txt` for evaluation, `train.txt` for alignment runs.

    Both lists hold only names of at most nine words, drawn in both styles and known to the emoji CLIP.
    """
    both = {str(row["name"]) for row in rows if row["style"] == "3d"}
    for file, split in (("heldout.txt", "align_test"), ("train.txt", "train")):
        names = dict.fromkeys(
            str(row["name"])
            for row in rows
            if row["split"] == split and row["name"] in both and len(words(str(row["name"]))) <= LONGEST
        )
        (folder / file).write_text("".join(f"{name}\n" for name in names))


def arrays(path: Path) -> tuple[np.ndarray, list[dict[str, str]]]:
    """`pictures.parquet` as (N, 64, 64, 3) uint8 and the rows without their bytes."""
    rows = pq.read_table(path).to_pylist()
    images = np.stack([np.array(Image.open(io.BytesIO(row.pop("webp"))).convert("RGB")) for row in rows])
    return images, rows


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
