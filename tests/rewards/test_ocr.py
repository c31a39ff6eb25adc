"""The OCR reward reads drawn text with its real reader; its formula is checked by hand."""

from __future__ import annotations

import sys

import pytest
import torch

from diffalign.reward import DiffalignError
from diffalign_rewards.ocr import Ocr, likeness, quoted

from . import drawn

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def quick():
    return Ocr(side=64)


READ = [
    (drawn.text("CAT", (64, 64), 20), "CAT"),
    (drawn.text("Hello World", (256, 128), 32), "Hello World"),
    (drawn.text("GRPO 2025", (256, 96), 40, "white", "navy"), "GRPO 2025"),
    (torch.full((1, 3, 64, 64), 0.5), ""),
    (torch.zeros(1, 3, 1, 1), ""),
]


@pytest.mark.parametrize(("picture", "words"), READ, ids=[words or str(p.shape[-1]) for p, words in READ])
def test_what_is_drawn_is_read(quick, picture, words):
    score = quick(picture, [f'a sign that says "{words or "CAT"}"'])
    assert score.shape == (1,)
    assert float(score) == (1 if words else 0)


def test_lines_are_read_from_the_top(quick):
    picture = drawn.text("north\nsouth", (160, 96), 28)
    right, wrong = quick(picture.expand(2, -1, -1, -1), ['"north south"', '"south north"']).tolist()
    assert wrong < right == 1


def test_a_wrong_letter_costs_its_share(quick):
    assert float(quick(READ[0][0], ['"CUT"'])) == pytest.approx(2 / 3)


def test_a_score_does_not_depend_on_the_rest_of_the_batch(quick):
    pictures = [drawn.text(word, (96, 64), 24) for word in ("CAT", "dog", "")]
    prompts = ['"cat"', '"dig"', '"猫 über"']
    together = quick(torch.cat(pictures), prompts)
    assert together.tolist() == [
        float(quick(*pair)) for pair in zip(pictures, [[p] for p in prompts], strict=True)
    ]
    assert together.tolist() == pytest.approx([1, 2 / 3, 0])


@pytest.mark.parametrize("options", [{}, {"find": False}], ids=["found", "one line"])
def test_the_other_ways_to_read(options):
    ocr = Ocr(**options)
    pictures = torch.cat([READ[0][0], READ[3][0]])
    assert ocr(pictures, ['"cat"'] * 2).tolist() == [1, 0]


LIKENESS = [
    ("CAT", "cat", 1),
    ("CAT", "the c at sat", 1),
    ("cat", "cut", 2 / 3),
    ("abcd", "abxcd", 3 / 4),
    ("kitten", "sitting", 1 / 2),
    ("cat", "", 0),
    ("cat", "dogs and birds", 0),
    ("Zu\u0308rich", "ZÜRICH", 1),
    ("猫です", "犬です", 2 / 3),
]


@pytest.mark.parametrize(("wanted", "read", "score"), LIKENESS)
def test_likeness_is_the_share_that_need_not_be_edited(wanted, read, score):
    assert likeness(wanted, read) == pytest.approx(score)


QUOTED = [
    ('a sign that says "Open 24 h"', "Open 24 h"),
    ("ein Schild „Zürich“ im Schnee", "Zürich"),
    ("a “猫” poster", "猫"),
    ('"first" and "second"', "first"),
]


@pytest.mark.parametrize(("prompt", "words"), QUOTED)
def test_the_wanted_text_is_in_the_first_double_quotes(prompt, words):
    assert quoted(prompt) == words


@pytest.mark.parametrize(
    "prompt", ["", "a cat", "it's 'single'", 'an empty "" sign, "x"', '" "', 'one " alone']
)
def test_a_prompt_without_quoted_text_is_refused_early(quick, prompt):
    for ask in (quick.prepare, lambda prompts: quick(READ[0][0], prompts)):
        with pytest.raises(DiffalignError, match=r"ocr needs .* in double quotes, such as: .* none in"):
            ask([prompt])


@pytest.mark.parametrize("package", ["rapidocr", "rapidfuzz"])
def test_without_the_package_the_error_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DiffalignError, match=rf"ocr needs {package} .* pip install 'diffalign\[ocr\]'"):
        Ocr()
