"""Text rendering: is the text that the prompt quotes what can be read in the picture?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffalign.reward import DiffalignError
from diffalign_rewards import _outside

QUOTED = re.compile('["“„]([^"“”„]*)["“”]')


class Ocr:
    """How much of the text in the prompt's first double quotes is read in the picture: from 0 to 1.

    1 where all of it is among what is read; else 1 - d/n, but not below 0, for an edit distance d from the n
    characters wanted to all that are read. Cases and spaces do not count. The reward of Flow-GRPO (Liu et al.
    2025, arXiv:2505.05470), with rapidocr (Apache-2.0), whose wheel holds its weights, for a reader.
    side: text is looked for with the picture's shorter side enlarged to this, if it is less; that takes most
    of the time, and 64 is enough for pictures as small as that.
    find: whether text is looked for at all; without it, the whole picture is read as a single line.
    """

    needs = "extra: diffalign[ocr]"
    cpu_only = True
    example_prompts = ('a sign that says "open"', 'the word "sale" in red letters', '"stop" on a wall')

    def __init__(self, side: int = 736, find: bool = True) -> None:
        _outside.library("rapidfuzz", "ocr")
        self.find = find
        self.reader = _outside.library("rapidocr", "ocr").RapidOCR(
            params={
                "Global.log_level": "error",  # that a picture holds no text is no reason for a warning
                "Det.limit_side_len": side,
                "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
            }
        )

    def prepare(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that quote nothing, before there are pictures."""
        for prompt in prompts:
            quoted(prompt)

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1] for their prompts."""
        wanted = [quoted(prompt) for prompt in prompts]
        seen = [self.read(Image.fromarray(pixels)) for pixels in _outside.arrays(images)]
        return torch.tensor([likeness(*pair) for pair in zip(wanted, seen, strict=True)])

    def read(self, picture: Image.Image) -> str:
        """All text that is found in a picture, from the top."""
        found = self.reader(picture, use_det=self.find, use_cls=False)  # it would turn `dog` over, to `6op`
        return "".join(found.txts or ())


def quoted(prompt: str) -> str:
    """The text that the picture shall show."""
    found = QUOTED.search(prompt)
    if found is None or not plain(found[1]):
        raise DiffalignError(
            f"ocr needs prompts with the wanted text in double quotes, such as: a sign that says "
            f'"open". There is none in {prompt[:200]!r}.'
        )
    return found[1]


def likeness(wanted: str, read: str) -> float:
    """1 where all of `wanted` is in `read`, else the share of it that need not be edited."""
    from rapidfuzz.distance import Levenshtein

    wanted, read = plain(wanted), plain(read)
    wrong = 0 if wanted in read else Levenshtein.distance(wanted, read)
    return max(0.0, 1 - wrong / len(wanted))


def plain(text: str) -> str:
    """Lower case, no spaces, and letters with accents as one character, however they were put in."""
    return "".join(unicodedata.normalize("NFC", text).lower().split())
