"""ZO-RankSGD: weights, what rankings can and cannot tell, and a climb that waits for its oracle."""

from __future__ import annotations

import pytest
import torch

from diffalign.errors import DiffalignError
from diffalign.grid import Grid
from diffalign.rewarding.compose import composed
from diffalign.search import Task
from diffalign.search.zo_rank_sgd import Climb, Judge, ZORankSGD, rank_weights
from diffalign.seeds import normal
from diffalign.steps import ODE

from .gaussian import Asked

pytestmark = pytest.mark.usefixtures("one_thread")

DIM = 12
TARGET = torch.linspace(-2, 2, DIM)


class Identity:
    """A model whose pictures are its noise."""

    latent_shape, dtype = (DIM,), torch.float32
    grid = Grid(
        torch.arange(1), torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 0.0]).double(), "sample"
    )

    def encode(self, prompts):
        return Asked(prompts)

    def noise(self, seeds):
        return normal(seeds, self.latent_shape)

    def predict(self, x, t, cond):
        assert len(x) == len(t) == len(cond)
        return x

    def decode(self, latents):
        return latents


def near(images, prompts):
    return -(images - TARGET).square().sum(1)


def along(images, prompts):
    return images @ TARGET


def task(prompts=("a",), reward=near, batch=64):
    return Task(Identity(), composed(reward), list(prompts), ODE(), batch=batch)


@pytest.mark.parametrize(("count", "top"), [(8, 4), (10, 5), (5, 5), (7, 1)])
def test_weights_are_those_of_all_decided_pairs_and_add_up_to_0(count, top):
    weights = rank_weights(count, top)
    own = torch.cat([weights[:top], weights[-1].expand(count - top)])
    assert float(own.sum()) == pytest.approx(0, abs=1e-6)
    pairs = [(i, j) for i in range(top) for j in range(i + 1, count)]
    counted = torch.zeros(count)
    for better, worse in pairs:
        counted[better] += 1
        counted[worse] -= 1
    torch.testing.assert_close(own, counted / len(pairs))


def test_the_official_weights_add_up_to_more():
    weights, pairs = rank_weights(10, 5, compat=True), 35
    assert float(weights[:5].sum() + 5 * weights[-1]) == pytest.approx(5 / pairs)


def direction_of(climb, judge):
    """The direction after one more ranking, without moving."""
    climb.tell(judge(climb.propose()))
    found = climb.direction / climb.tries[:, None]
    judge(climb.propose())
    climb.tell([[0]] * len(found))
    return found


def test_directions_of_rankings_point_up_a_slope():
    here = task([str(n) for n in range(8)], along)
    climb = Climb(ZORankSGD(queries=8, top=4), here)
    judge, cosines = Judge(here, climb), {}
    for rounds in range(1, 41):
        cosines[rounds] = float(torch.cosine_similarity(direction_of(climb, judge), TARGET[None]).mean())
    assert cosines[1] < cosines[5] < cosines[40]
    assert cosines[40] > 0.95


def test_it_climbs_a_quadratic():
    found = ZORankSGD(rounds=40).run(task("ab"))
    assert float((found.total / found.first_scores["total"]).max()) < 0.02
    assert torch.equal(found.noise, torch.stack([extras["noise"] for extras in found.extras]))
    assert all(extras["moves"] >= 10 for extras in found.extras)


def test_only_the_order_counts():
    def bent(images, prompts):
        return (near(images, prompts) / 20).exp() ** 3

    ours, theirs = ZORankSGD(rounds=5).run(task("ab")), ZORankSGD(rounds=5).run(task("ab", bent))
    assert torch.equal(ours.noise, theirs.noise)
    official = ZORankSGD(rounds=5, compat=True).run(task("ab"))
    assert not torch.equal(ours.noise, official.noise)


def test_results_depend_neither_on_the_batch_nor_on_other_prompts():
    together = ZORankSGD(rounds=3).run(task(["a", "b", "a"], batch=5))
    assert torch.equal(ZORankSGD(rounds=3).run(task(["b"], batch=1)).noise[0], together.noise[1])
    assert not torch.equal(together.noise[0], together.noise[2])


def test_nothing_is_computed_or_scored_twice():
    found = ZORankSGD(rounds=3, queries=6, top=3).run(task("ab"))
    assert [(c.denoiser_calls, c.reward_calls) for c in found.costs] == [(1 + 3 * 10, 1 + 3 * 10)] * 2
    assert len(found.paths[0]) == 31


def test_who_does_not_move_averages_directions_and_who_moves_starts_anew():
    here = task("ab")
    climb = Climb(ZORankSGD(queries=5, top=2), here)
    judge = Judge(here, climb)
    for tries in (1, 2):
        before = climb.noise
        climb.tell(judge(climb.propose()))
        assert climb.tries.tolist() == [tries, tries]
        judge(climb.propose())
        climb.tell([[0], [2]] if tries == 2 else [[0], [0]])
    assert climb.tries.tolist() == [2, 0]
    assert climb.moves.tolist() == [0, 1]
    assert torch.equal(climb.noise[0], before[0])
    assert not torch.equal(climb.noise[1], before[1])


def test_a_person_can_rank():
    def unasked(images, prompts):
        raise AssertionError("the reward must not be asked")

    def person(shown):
        return (
            near(shown.latents.flatten(0, 1), [])
            .unflatten(0, (1, -1))
            .argsort(1, descending=True)[:, : shown.best]
        )

    method = ZORankSGD(rounds=4)
    found = method.ask(task(reward=unasked), person)
    by_reward = method.run(task())
    assert torch.equal(found.noise[0], by_reward.extras[0]["noise"])
    assert float(found.total[0]) == by_reward.extras[0]["moves"] > 0


def test_a_climb_waits_for_its_oracle():
    climb = Climb(ZORankSGD(queries=5, top=2), task())
    shown = climb.propose()
    assert climb.propose() is shown
    assert (shown.stage, shown.best, shown.latents.shape) == ("queries", 2, (1, 5, DIM))
    for order in ([[0]], [[1, 1]], [[0, 5]], [[-1, 0]], [0, 1]):
        with pytest.raises(DiffalignError, match="does not name the best 2 of 5"):
            climb.tell(order)
    climb.tell([[3, 1]])
    line = climb.propose()
    assert (line.stage, line.best, line.latents.shape) == ("line", 1, (1, 5, DIM))
    assert line.fresh == [2, 3, 4]
    assert line.serial.tolist() == [[0, 4, 6, 7, 8]]
    assert torch.equal(line.noise[0, 0], climb.noise[0])
    assert torch.equal(line.noise[0, 1], shown.noise[0, 3])
    steps = line.noise[0, 2:] - climb.noise[0]
    torch.testing.assert_close(steps[1:] * 2, steps[:-1])


def sometimes_nan(images, prompts):
    return near(images, prompts).where(images[:, 0] > -1, torch.nan)


def test_candidates_without_a_score_lose_and_are_counted():
    found = ZORankSGD(rounds=20, radius=1.0).run(task([str(n) for n in range(4)], sometimes_nan))
    assert sum(cost.lost for cost in found.costs) > 0
    assert bool((found.noise[:, 0] > -1).all())
    assert bool((found.total > found.first_scores["total"]).all())


def test_bad_settings_are_refused():
    for settings in ({"queries": 2, "top": 1}, {"queries": 4, "top": 5}):
        with pytest.raises(DiffalignError, match="at least 3 queries"):
            ZORankSGD(**settings).run(task())
