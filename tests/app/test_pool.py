"""Pairs are drawn ahead, fairly, and no user sees one twice."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from diffalign.errors import DiffalignError
from diffalign_demo.app.choosing import Kind
from diffalign_demo.app.pool import AHEAD, Pool
from diffalign_demo.app.studio import Pair
from diffalign_demo.app.turns import Turns

TRAIN = Kind("train")


class Paint:
    """Numbered pairs; `open` lets it draw, and `drawn` says for which prompts it did."""

    def __init__(self) -> None:
        self.numbers, self.open, self.drawn = itertools.count(), threading.Event(), list[str | None]()
        self.problem: Exception | None = None
        self.open.set()

    def __call__(self, kind: Kind, prompts: Sequence[str | None]) -> list[Pair]:
        self.open.wait(10)
        if self.problem:
            raise self.problem
        self.drawn += prompts
        return [
            Pair(p or "any", (f"{n}a", f"{n}b"), kind) for p, n in zip(prompts, self.numbers, strict=False)
        ]


@pytest.fixture
def paint() -> Paint:
    return Paint()


@pytest.fixture
def pool(paint: Paint) -> Iterator[Pool]:
    made = Pool(paint)
    yield made
    paint.open.set()
    made.close()


def eventually(true: Callable[[], bool]) -> bool:
    return any(true() or time.sleep(0.01) for _ in range(500))


def test_pairs_are_ready_before_they_are_asked_for(pool: Pool, paint: Paint):
    assert pool.take("ada", TRAIN, 5)
    assert eventually(lambda: len(paint.drawn) >= AHEAD)
    paint.open.clear()
    begun = time.monotonic()
    assert all(pool.take("ada", TRAIN, 5) for _ in range(AHEAD - 1))
    assert time.monotonic() - begun < 0.2


def test_nobody_sees_a_pair_twice(pool: Pool):
    seen = {user: [pool.take(user, TRAIN, 5) for _ in range(60)] for user in ("ada", "bob")}
    for pairs in seen.values():
        assert None not in pairs
        assert len({pair.pictures for pair in pairs}) == 60
    assert {p.pictures for p in seen["ada"]} & {p.pictures for p in seen["bob"]}, (
        "some pairs are shown to both"
    )


def test_an_own_prompt_comes_next_and_to_its_user_alone(pool: Pool):
    pool.take("ada", TRAIN, 5)
    pool.ask("ada", TRAIN, "my cat")
    assert pool.take("ada", TRAIN, 5).prompt == "my cat"
    assert all(pool.take("bob", TRAIN, 5).prompt == "any" for _ in range(30))


def test_one_prompt_of_a_user_at_a_time(pool: Pool, paint: Paint):
    paint.open.clear()
    pool.ask("ada", TRAIN, "first")
    with pytest.raises(DiffalignError, match="still being drawn"):
        pool.ask("ada", TRAIN, "second")
    pool.ask("bob", TRAIN, "his")


def test_own_prompts_do_not_starve_the_others(pool: Pool, paint: Paint):
    paint.open.clear()
    for n in range(20):
        pool.ask(f"user {n}", TRAIN, f"prompt {n}")
    waiting = threading.Thread(target=pool.take, args=("ada", TRAIN, 5))
    waiting.start()
    assert eventually(lambda: TRAIN in pool._last_wanted)
    paint.open.set()
    waiting.join()
    assert eventually(lambda: None in paint.drawn)
    assert paint.drawn.index(None) <= 2


def test_what_cannot_be_drawn_is_told_and_tried_again(pool: Pool, paint: Paint):
    paint.problem = DiffalignError("out of paint")
    with pytest.raises(DiffalignError, match="out of paint"):
        pool.take("ada", TRAIN, 5)
    paint.problem = None
    assert eventually(lambda: not pool._problems)
    assert pool.take("ada", TRAIN, 5)


def test_a_prompt_that_fails_is_its_users_problem_alone(pool: Pool, paint: Paint):
    pool.take("bob", TRAIN, 5)
    paint.problem = DiffalignError("unspeakable")
    pool.ask("ada", TRAIN, "what")
    with pytest.raises(DiffalignError, match="unspeakable"):
        pool.take("ada", TRAIN, 5)
    paint.problem = None
    assert pool.take("bob", TRAIN, 5)
    assert pool.take("ada", TRAIN, 5).prompt == "any"


def test_what_is_not_drawn_in_time_is_none(pool: Pool, paint: Paint):
    paint.open.clear()
    assert pool.take("ada", TRAIN, 0.05) is None


def test_a_new_model_makes_old_pairs_go(pool: Pool):
    old = pool.take("ada", TRAIN, 5)
    pool.clear()
    later = [pool.take("bob", TRAIN, 5) for _ in range(20)]
    assert old.pictures not in [pair.pictures for pair in later]


def test_turns_go_in_the_order_of_arrival():
    turns, order, threads = Turns(), [], []

    def run(n: int) -> None:
        with turns:
            order.append(n)

    with turns:
        for n in range(8):
            threads.append(threading.Thread(target=run, args=(n,)))
            threads[-1].start()
            assert eventually(lambda n=n: len(turns._changed._waiters) == n + 1)
    for thread in threads:
        thread.join()
    assert order == list(range(8))
