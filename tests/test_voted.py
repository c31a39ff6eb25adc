"""Training from people's votes: which of them, in which order, and that a policy learns what was preferred."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

import pytest
import torch
from accelerate import Accelerator

from diffalign.algorithms.d3po import D3PO
from diffalign.errors import DiffalignError
from diffalign.policy import LoraSpec, Policy
from diffalign.preferences import Store
from diffalign.rewarding.compose import Composite
from diffalign.run import Batching, Run
from diffalign.settings import config
from diffalign.steps import DDIM
from diffalign.training.live import ALIVE, Live
from diffalign.training.voted import Awaited, Ballots, Pair, Stored, Voted, fixed
from diffalign.walk import rollout

pytestmark = pytest.mark.usefixtures("one_thread")
RULE = DDIM(quiet_last=1)
PROMPTS = ["red apple", "cat face", "blue heart"]


@pytest.fixture(scope="module")
def model() -> tuple[Policy, dict[str, torch.Tensor]]:
    made = Policy.from_pretrained("emoji", steps=3, guidance_scale=3.0, lora=LoraSpec(rank=2))
    return made, made.adapter_state()


@pytest.fixture
def policy(model) -> Policy:
    """The model before any training."""
    made, untrained = model
    made.load_adapter_state(untrained)
    return made


@pytest.fixture
def store(tmp_path) -> Store:
    with_votes = Store.open(tmp_path / "votes.db")
    yield with_votes
    with_votes.close()


def drawn(store: Store, policy: Policy, prompt: str, seed: int, model: str = "emoji") -> list[str]:
    """The ids of two pictures of a prompt that share x_T."""
    steps = [2 * seed, 2 * seed + 1]
    batch = rollout(policy, RULE, [prompt] * 2, steps, noise_seeds=[seed] * 2, group=[0, 0], batch=2)
    with torch.no_grad():
        images = policy.decode(batch.final)
    return [
        store.pictures.add(images[k], prompt=prompt, model=model, seed=seed, trajectory=batch[[k]])
        for k in range(2)
    ]


def voted(store: Store, pictures: list[str], choice: str = "a", user: str = "ann") -> None:
    store.vote(store.show(user, pictures), user, choice)


def run_of(store: Store, policy: Policy, source, pairs: int = 2, **more) -> Voted:
    batching = Batching(prompts_per_round=pairs, images_per_prompt=2, micro_batch=8, sample_batch=2)
    return Voted(policy, RULE, Composite({}), PROMPTS, batching, store=store, source=source, **more)


def test_a_round_holds_winners_and_losers_as_they_were_sampled(store, policy):
    first, second = (drawn(store, policy, prompt, seed) for seed, prompt in enumerate(PROMPTS[:2]))
    voted(store, first, "b"), voted(store, second, "a")
    batch = run_of(store, policy, Stored(Ballots(store, "emoji").check())).sample()
    assert sorted(batch.prompts) == ["cat face", "cat face", "red apple", "red apple"]
    assert batch.group.tolist() == [0, 0, 1, 1]
    assert batch.total.tolist() == [1.0, 0.0, 1.0, 0.0]
    winners = dict(zip(batch.prompts[::2], batch.seeds[::2], strict=True))
    assert winners == {"red apple": 1, "cat face": 2}


def test_what_is_read_back_scores_as_when_it_was_sampled(store, policy):
    voted(store, drawn(store, policy, "red apple", 0))
    run = run_of(store, policy, Stored(Ballots(store, "emoji").check()), pairs=1)
    batch = run.sample()
    for rows, cols in run.transitions(batch):
        with torch.no_grad():
            assert torch.allclose(run.log_prob(batch, rows, cols), batch.log_probs[rows, cols], atol=2e-3)


def test_a_policy_learns_what_was_preferred(store, policy):
    for seed, prompt in enumerate(PROMPTS[:2]):
        voted(store, drawn(store, policy, prompt, seed), "ab"[seed])
    run = run_of(store, policy, Stored(Ballots(store, "emoji").check()))
    method, adam = (
        D3PO(mode="paper_code", reference="previous_round"),
        torch.optim.Adam(policy.trainable(), 1e-4),
    )
    for run.round in range(4):
        batch = method.collect(run)
        adam.zero_grad()
        for loss in method.losses(run, batch):
            loss.backward()
        adam.step()
    margins = torch.zeros(len(batch))
    for rows, cols in run.transitions(batch):
        with torch.no_grad():
            moved = run.log_prob(batch, rows, cols) - batch.log_probs[rows, cols]
        margins.index_add_(0, rows, moved)
    assert (margins[::2] > margins[1::2]).all()


def turns(pairs: list[Pair], rounds: int, size: int) -> list[Pair]:
    source = Stored(pairs)
    run = Run.__new__(Run)
    run.batching, run.seed = Batching(prompts_per_round=size, images_per_prompt=2), 0
    return [pair for run.round in range(rounds) for pair in source(run)]


def test_every_pass_shows_every_pair_once():
    pairs = [Pair(str(k), "loser") for k in range(5)]
    seen = turns(pairs, rounds=5, size=2)
    assert Counter(seen[:5]) == Counter(seen[5:]) == Counter(pairs)
    assert seen[:5] != seen[5:]


def test_weights_say_how_often_a_pair_is_learned_from():
    seen = Counter(
        pair.winner for pair in turns([Pair("often", "x", 3.0), Pair("rarely", "x", 1.0)], 1000, 2)
    )
    assert seen["often"] / seen.total() == pytest.approx(0.75, abs=0.05)


def test_only_fitting_votes_are_learned_from_and_the_rest_is_counted(store, policy):
    good = drawn(store, policy, "red apple", 0)
    voted(store, good, "a")
    voted(store, good, "tie", user="bob")
    voted(store, drawn(store, policy, "blue heart", 1), "b", user="bob")
    voted(store, drawn(store, policy, "cat face", 2, model="sd15"), user="bob")
    voted(store, drawn(store, policy, "cat face", 3, model="emoji+0123456789ab"), user="cid")
    bare = [store.pictures.add(torch.full((3, 4, 4), v), prompt="sun", model="emoji") for v in (0.1, 0.9)]
    voted(store, bare, user="cid")
    ballots = Ballots(store, "emoji", without=["blue heart"])
    assert [(p.winner, p.loser) for p in ballots.pairs("emoji")] == [tuple(good)]
    assert len(ballots.pairs()) == 2
    said = "; ".join(ballots.left_out())
    for words in ("1 vote(s) that chose neither", "1 vote(s) on held-out", "1 vote(s) on pictures of other models",
                  "1 vote(s) on pictures without a trajectory, which D3PO needs"):  # fmt: skip
        assert words in said
    assert len(Ballots(store, "emoji", {"cid": 2.0}).pairs()) == 1
    assert Ballots(store, "emoji", {"cid": 2.0}).pairs()[0].weight == 2.0
    assert Ballots(store, "emoji", {"cid": 0.0, "ann": 1.0}).check() == [Pair(*good)]


def test_a_picture_is_looked_at_once_however_long_a_run_waits(store, policy, monkeypatch):
    looked, read = Counter(), store.pictures.read
    good, later = drawn(store, policy, "red apple", 0), drawn(store, policy, "cat face", 1)
    voted(store, good)
    monkeypatch.setattr(store.pictures, "read", lambda name: (looked.update([name]), read(name))[1])
    ballots = Ballots(store, "emoji")
    assert ballots.check() == ballots.pairs("emoji") == [Pair(*good)]
    assert list(ballots.left_out()) == []
    assert looked == Counter(good)
    voted(store, later, "b")
    looked.clear()
    assert ballots.pairs() == [Pair(*good), Pair(*later[::-1])]
    assert looked == Counter(later)


def test_what_cannot_be_learned_from_is_said(store, policy):
    with pytest.raises(DiffalignError, match="nobody has voted yet"):
        Ballots(store, "emoji").check()
    voted(store, drawn(store, policy, "red apple", 0), "both_bad")
    with pytest.raises(DiffalignError, match=r"1 vote\(s\) that chose neither"):
        Ballots(store, "emoji").check()
    with pytest.raises(DiffalignError, match=r"zoe never voted in .*votes.db; those who did: ann"):
        Ballots(store, "emoji", {"zoe": 1.0}).check()


def test_votes_that_come_later_change_nothing_for_a_run_that_has_begun(store, policy, tmp_path):
    ballots, path = Ballots(store, "emoji"), tmp_path / "votes.json"
    with pytest.raises(DiffalignError, match="nobody has voted yet"):
        fixed(ballots, path, Accelerator())
    voted(store, drawn(store, policy, "red apple", 0))
    begun = fixed(ballots, path, Accelerator())
    voted(store, drawn(store, policy, "cat face", 1))
    assert fixed(ballots, path, Accelerator()) == begun == ballots.pairs()[:1]


def test_a_round_with_people_waits_for_votes_on_what_was_published(store, policy, tmp_path):
    voted(store, drawn(store, policy, "red apple", 0))
    ballots = Ballots(store, "emoji")
    live = Live(tmp_path / "live")
    run = run_of(store, policy, Awaited(live, "emoji", ballots.pairs, pause=0.01), pairs=1)
    assert run.source(run) == ballots.pairs()
    run.round = 1
    with torch.no_grad():
        policy.trainable()[1].add_(0.01)
    got: list[list[Pair]] = []
    waiting = threading.Thread(target=lambda: got.append(run.source(run)))
    waiting.start()
    while not live.waits:
        pass
    waiting.join(0.2)
    assert waiting.is_alive()
    assert [shown.name for shown in live.rounds()] == ["round-0000", "round-0001"]
    policy.load(live.rounds()[-1])
    label = f"emoji+{policy.version}"
    voted(store, drawn(store, policy, "cat face", 1, model=label))
    waiting.join(10)
    assert got == [ballots.pairs(label)]
    assert len(got[0]) == 1
    assert not live.waits


def test_a_run_that_was_killed_while_it_waited_waits_no_more(tmp_path):
    live = Live(tmp_path)
    assert not live.waits
    with live.waiting() as sign:
        assert live.waits
        long_ago = time.time() - 2 * ALIVE
        os.utime(sign, (long_ago, long_ago))
        assert not live.waits
        sign.touch()
        assert live.waits
    assert not live.waits


def test_a_resumed_run_shows_nothing_of_the_rounds_it_lost(store, policy, tmp_path):
    live, run = Live(tmp_path), run_of(store, policy, Stored([]), pairs=1)
    for number in (0, 1, 2):
        run.round = number
        live.show(run)
    with torch.no_grad():
        policy.trainable()[1].add_(0.01)
    run.round = 1
    live.show(run)
    assert [shown.name for shown in live.rounds()] == ["round-0000", "round-0001"]
    expected = policy.version
    policy.load(live.rounds()[-1])
    assert policy.version == expected


def test_a_round_that_waits_ends_when_it_is_told_to(store, policy, tmp_path):
    source = Awaited(Live(tmp_path), "emoji", Ballots(store, "emoji").pairs, pause=0.01)
    run = run_of(store, policy, source, pairs=1)
    looks = iter([False, True])
    run.interrupted = lambda: next(looks)
    with pytest.raises(KeyboardInterrupt):
        run.source(run)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["preferences=null"], "say what to learn from, votes or rewards"),
        (["rewards=[emoji_clip]", "eval_rewards=[vendi]"], "stands in place of `rewards`"),
        (["algorithm={name: ddpo}"], "d3po learns from, and ddpo does not"),
        (["images_per_prompt=4"], "a vote is about a pair of pictures; make it 2"),
        (["wait=true", "voters={ann: 1, bob: 2}"], "leave the weights out of `voters`"),
        (["voters={ann: -1}"], "greater than or equal to 0"),
    ],
)
def test_configs_that_do_not_fit_are_refused(given, message):
    with pytest.raises(DiffalignError, match=message):
        config.load("emoji-d3po-votes", given)


@pytest.mark.parametrize("text", ["ann", "[ann]", "{ann: 1}"])
def test_voters_are_a_name_names_or_weights(text):
    assert config.load("emoji-d3po-votes", [f"voters={text}"]).voters == {"ann": 1.0}


def test_what_says_how_votes_are_used_goes_with_votes():
    with pytest.raises(DiffalignError, match="give `preferences`"):
        config.load("emoji-d3po", ["wait=true"])
