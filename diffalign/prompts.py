"""Where prompts come from: packaged lists, text files, JSON lines, Hugging Face datasets."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from diffalign.errors import DiffalignError, unknown

PACKAGED = (("", "diffalign_configs", "."), ("emoji-", "diffalign_demo", "emoji/prompts"))
"""(prefix of the name, package, folder in it) of the lists that ship inside."""


def packaged() -> dict[str, Path]:
    """name -> file of every packaged prompt list."""
    found: dict[str, Path] = {}
    for prefix, package, folder in PACKAGED:
        for root in package_roots(package):
            found |= {prefix + file.stem: file for file in sorted((root / folder).glob("*.txt"))}
    return found


def load(source: str, limit: int | None = None) -> list[str]:
    """The prompts of a packaged list, a .txt file (one a line), a .jsonl file (a string, or an object
    with "prompt", a line) or hf:dataset[:split[:column]]; the first `limit` of them where given.
    """
    read, where = _reader(source)
    stripped = (prompt.strip() for prompt in read(where))
    found = list(islice((prompt for prompt in stripped if prompt), limit))
    if not found:
        raise DiffalignError(f"{source} has no prompts: it is empty. Write one prompt a line.")
    return found


def _reader(source: str) -> tuple[Callable[[str], Iterator[str]], str]:
    if source.startswith("hf:"):
        return _dataset, source.removeprefix("hf:")
    lists = packaged()
    if source in lists:
        return _text, str(lists[source])
    readers = {".txt": _text, ".jsonl": _json_lines}
    path = Path(source)
    if path.suffix not in readers:
        allowed = [*lists, "FILE.txt", "FILE.jsonl", "hf:DATASET[:SPLIT[:COLUMN]]"]
        raise unknown("prompts", source, allowed)
    if not path.is_file():
        raise DiffalignError(f"the prompt file {source} does not exist (looked in {Path.cwd()}).")
    return readers[path.suffix], source


def _text(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise DiffalignError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from error


def _json_lines(path: str) -> Iterator[str]:
    for number, line in enumerate(_text(path), 1):
        if line.strip():
            yield _prompt_of(line, f"{path}:{number}")


def _prompt_of(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DiffalignError(f"{where} is not JSON: {error}. Write one JSON value a line.") from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise DiffalignError(
            f'{where} has no prompt: write "a cat" or {{"prompt": "a cat"}}, not {line.strip()}'
        )
    return prompt


def _dataset(name: str) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DiffalignError("prompts from hf: need the extra: pip install 'diffalign[datasets]'") from error
    path, split, column = (*name.split(":"), *("", ""))[:3]
    column = column or "prompt"
    try:
        rows = load_dataset(path, split=split or "train", streaming=True)
        yield from (_cell(row, column, path) for row in rows)
    except (OSError, ValueError) as error:
        raise DiffalignError(f"could not read the dataset {path!r}: {error}") from error


def _cell(row: dict[str, Any], column: str, path: str) -> str:
    if column not in row:
        raise unknown(f"column of the dataset {path}", column, row)
    return str(row[column])


def package_roots(package: str) -> list[Path]:
    """The folders of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    return [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
