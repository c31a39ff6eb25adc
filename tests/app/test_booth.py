"""What a user is shown, and what becomes of what is said of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from app.scribble import session

from diffalign.errors import DiffalignError
from diffalign.policy import Policy
from diffalign.steps import DDIM
from diffalign_demo.app.artist import Artist
from diffalign_demo.app.booth import Booth
from diffalign_demo.app.choosing import Kind, apart, next_models, next_prompt, worth_having
from diffalign_demo.app.session import Session

TRAIN, JUDGE = Kind("train"), Kind("judge")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Session]:
    made = session(tmp_path, ("other",))
    yield made
    made.close()


@pytest.fixture
def booth(running: Session) -> Booth:
    return running.booth


def test_a_pair_stays_until_it_is_voted_on(booth: Booth):
    first = booth.next("ada", TRAIN, 10)
    assert booth.next("ada", TRAIN, 10) == first
    booth.vote("ada", first.showing, "a", 1.0, "token-1")
    assert booth.next("ada", TRAIN, 10).showing != first.showing


def test_a_double_click_counts_once(booth: Booth):
    offer = booth.next("ada", TRAIN, 10)
    votes = [booth.vote("ada", offer.showing, "b", 1.0, "token-1") for _ in range(3)]
    assert len({vote.id for vote in votes}) == 1
    assert booth.store.count() == 1


def test_undone_pairs_are_shown_again_and_the_open_one_after_them(booth: Booth):
    first = booth.next("ada", TRAIN, 10)
    booth.vote("ada", first.showing, "a", 1.0, "token-1")
    second = booth.next("ada", TRAIN, 10)
    assert booth.undo("ada", "undo-1").showing == first.showing
    again = booth.next("ada", TRAIN, 10)
    assert (again.showing, again.pictures, again.again) == (first.showing, first.pictures, True)
    booth.vote("ada", first.showing, "b", 1.0, "token-2")
    assert booth.next("ada", TRAIN, 10) == second
    assert [vote.choice for vote in booth.store.votes()] == ["b"]


def test_there_may_be_nothing_to_undo(booth: Booth):
    assert booth.undo("ada", "undo-1") is None


def test_a_ranking_is_not_undone_from_here(running: Session):
    store, offer = running.store, running.booth.next("ada", TRAIN, 10)
    showing = store.show("ada", offer.pictures, kind="ranking")
    store.vote(showing, "ada", [offer.pictures[0]])
    assert running.booth.undo("ada", "undo-1") is None
    assert store.count() == 1


def test_nobody_votes_on_what_another_was_shown(booth: Booth):
    offer = booth.next("ada", TRAIN, 10)
    with pytest.raises(DiffalignError, match="shown to 'bob'"):
        booth.vote("bob", offer.showing, "a", 1.0, "token-1")
    assert booth.store.count() == 0


def test_an_answer_from_another_window_does_not_stick(booth: Booth):
    offer = booth.next("ada", TRAIN, 10)
    booth.store.vote(offer.showing, "ada", "a")
    with pytest.raises(DiffalignError, match="answered already"):
        booth.vote("ada", offer.showing, "b", 1.0, "token-1")
    assert booth.next("ada", TRAIN, 10).showing != offer.showing


def test_sides_are_random(booth: Booth):
    order = []
    for n in range(40):
        offer = booth.next("ada", JUDGE, 10)
        order.append(booth.store.pictures.info(offer.pictures[0]).model)
        booth.vote("ada", offer.showing, "tie", 1.0, f"token-{n}")
    assert set(order) == {"scribble", "other"}


def test_judging_compares_two_models_of_equal_seeds(booth: Booth):
    offer = booth.next("ada", JUDGE, 10)
    infos = [booth.store.pictures.info(picture) for picture in offer.pictures]
    assert {info.model for info in infos} == {"scribble", "other"}
    assert infos[0].seed == infos[1].seed


def test_the_other_kind_gets_a_pair_of_its_own(booth: Booth):
    one, two = booth.next("ada", TRAIN, 10), booth.next("ada", JUDGE, 10)
    assert one.showing != two.showing
    assert booth.next("ada", TRAIN, 10) == one


def test_the_prompt_with_the_fewest_decided_votes_is_next(booth: Booth):
    pick = random.Random(0)
    for n in range(12):
        offer = booth.next("ada", TRAIN, 10)
        booth.vote("ada", offer.showing, "a", 1.0, f"token-{n}")
    votes = booth.store.votes()
    prompts = [vote.prompt for vote in votes]
    chosen = next_prompt(["never seen", *prompts], votes, "informed", pick)
    assert chosen == "never seen"
    assert {next_prompt(["x", "y"], votes, "random", pick) for _ in range(50)} == {"x", "y"}


def test_the_least_known_models_are_compared_next(running: Session):
    pick, votes = random.Random(0), []
    for n in range(30):
        offer = running.booth.next("ada", JUDGE, 10)
        running.booth.vote("ada", offer.showing, "ab"[n % 2], 1.0, f"token-{n}")
    votes = running.store.votes()
    chosen = next_models(["scribble", "other", "new"], votes, "informed", pick)
    assert "new" in chosen
    found = {frozenset(next_models(["scribble", "other", "new"], votes, "random", pick)) for _ in range(60)}
    assert len(found) == 3


def test_the_two_most_different_candidates_of_every_pair_are_chosen():
    places = torch.tensor([[0.0, 3.0, 1.0, -2.0], [5.0, 5.1, 5.2, 5.3]])
    latents = places.reshape(8, 1, 1, 1).expand(8, 2, 3, 3)
    assert apart(latents, 4).tolist() == [1, 3, 4, 7]
    assert apart(latents, 2).tolist() == list(range(8))


@pytest.mark.weights
def test_more_candidates_make_pairs_that_differ_more():
    artist = Artist("emoji", Policy.from_pretrained("emoji", steps=2, lora=False), DDIM())
    (_, _, two), (_, pictures, chosen) = (artist.pairs(["red apple", "dog"], [1, 2], n) for n in (2, 5))
    apart_by = [(b.final[::2] - b.final[1::2]).flatten(1).norm(dim=1) for b in (two, chosen)]
    assert (apart_by[1] > apart_by[0] - 1e-3).all()  # the first two are among the five
    assert (apart_by[1] > apart_by[0] + 1e-2).any()
    assert chosen.prompts == ["red apple", "red apple", "dog", "dog"]
    assert torch.equal(chosen.states[::2, 0], chosen.states[1::2, 0])
    assert len(pictures) == 4


def test_how_many_votes_are_worth_having():
    assert worth_having("train", 1) == 100
    assert worth_having("judge", 3) == 120
