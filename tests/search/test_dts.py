"""Tree search: values against Bellman's equation, samples against tilted laws, stopping against going on."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from diffalign.errors import DiffalignError
from diffalign.policy import Policy
from diffalign.rewarding.compose import composed
from diffalign.search import Task
from diffalign.search.best_of_n import BestOfN
from diffalign.search.dts import DTS
from diffalign.searching.ledger import Cost
from diffalign.searching.tree import Tree, soft_mean
from diffalign.steps import DDIM, ODE
from families import FAMILIES

from .finite import FinitePolicy, Says, is_one, state
from .mixture import MixturePolicy, mmd2, reward

pytestmark = pytest.mark.usefixtures("one_thread")

LAM, SAYS = 2.0, Says()
QUARTERS = (0.0, 0.25, 0.5, 0.75)


def task(prompts=("a",), score=is_one, batch=64, policy=None, rule=SAYS):
    return Task(policy or FinitePolicy(), composed(score), list(prompts), rule, batch=batch)


def method(rollouts, **settings):
    return DTS(rollouts=rollouts, **{"mode": "sample", "lam": LAM, "branches": QUARTERS} | settings)


# -- the tree by itself -----------------------------------------------------------------------


def full_tree(rewards, width: int = 3) -> Tree:
    """Every node has `width` children; leaves get these rewards."""
    tree = Tree("a", [0, 1, 2])
    nodes = itertools.cycle(rewards)
    while short := [
        n for n in range(len(tree.parent)) if not tree.is_leaf(n) and len(tree.children[n]) < width
    ]:
        leaf = tree.expand(short[0])[-1]
        tree.finish(leaf, {"total": next(nodes)}, Cost())
        tree.backup(leaf, LAM)
    return tree


def test_values_of_a_full_tree_are_exact():
    rewards = torch.randn(27, generator=torch.Generator().manual_seed(0)).double()
    tree = full_tree(rewards.tolist())
    assert len(tree) == 27
    assert tree.value[0] == pytest.approx(float((LAM * rewards).exp().mean().log() / LAM))
    assert tree.visits[0] == 27
    assert all(tree.visits[child] == 9 for child in tree.children[0])
    for lam, expected in (
        (0.0, float(rewards.mean())),
        (1e-6, float(rewards.mean())),
        (math.inf, float(rewards.max())),
    ):
        for leaf in tree.leaves:
            tree.backup(leaf, lam)
        assert tree.value[0] == pytest.approx(expected, abs=1e-5)
    assert tree.scores[tree.leaves.index(tree.likeliest())]["total"] == float(rewards.max())


def test_a_full_tree_samples_its_leaves_by_their_tilt():
    rewards = torch.randn(27, generator=torch.Generator().manual_seed(0)).double()
    tree, count = full_tree(rewards.tolist()), 4000
    drawn = torch.bincount(
        torch.tensor([tree.leaves.index(leaf) for leaf in tree.sample(count, LAM)]), minlength=27
    )
    expected = (LAM * rewards).softmax(0)
    error = (drawn / count - expected) / (expected * (1 - expected) / count).sqrt()
    assert float(error.abs().max()) < 4


def test_lost_leaves_weigh_nothing():
    assert soft_mean([0.0, -math.inf], LAM) == pytest.approx(-math.log(2) / LAM)
    assert soft_mean([1.0, -math.inf], 0.0) == 1
    assert soft_mean([-math.inf] * 2, LAM) == -math.inf
    tree = full_tree([-math.inf] * 26 + [0.0])
    assert {tree.leaves.index(leaf) for leaf in tree.sample(20, LAM)} == {26}
    lost = full_tree([-math.inf] * 27)
    assert len(set(lost.sample(50, LAM))) > 5


# -- what it samples --------------------------------------------------------------------------


def test_leaves_sample_the_tilted_chain():
    """One branching below the noise, as wide as published: otherwise the limit is the same, and far away."""
    found = method(300, parallel=10, branches=(0.5,), branching=2.0).run(task("abcdef", batch=60))
    shares = []
    for extras in found.extras:
        drawn = torch.stack([extras["tree"].latents_of(leaf) for leaf in extras["tree"].sample(300, LAM)])
        shares.append(float(state(drawn).float().mean()))
    assert sum(shares) / len(shares) == pytest.approx(FinitePolicy().law(LAM), abs=0.03)


def test_the_distance_to_the_tilted_mixture_falls_with_rollouts():
    policy, rule = MixturePolicy(10), DDIM()
    base = task(["base"], reward, batch=10**4, policy=policy, rule=rule)
    owner, member = torch.zeros(3000, dtype=torch.long), torch.arange(3000)
    target = base.sample(base.noise(owner, member), owner, base.seeds("steps", owner, member))
    weights = reward(target, []).double().softmax(0)
    here, trees = task("abcd", reward, policy=policy, rule=rule), []
    distances = []
    for rollouts in (16, 64, 192):
        ours = method(rollouts, lam=1.0, parallel=8, branches=(0.0, 0.2, 0.4, 0.6, 0.8))
        trees = trees or [Tree(prompt, ours.levels(policy.grid)) for prompt in "abcd"]
        ours.grow(here, trees)
        distances.append(0.0)
        for tree in trees:
            leaves = torch.stack([tree.latents_of(leaf) for leaf in tree.sample(300, 1.0)])
            distances[-1] += mmd2(leaves, torch.full((300,), 1 / 300), target, weights) / 4
    assert distances[0] > 1.5 * distances[1] > 1.5**2 * distances[2]


def test_with_no_branches_it_is_best_of_n():
    ours = DTS(rollouts=8, branches=()).run(task(["a", "b"], batch=3))
    plain = BestOfN(8).run(task(["a", "b"], batch=5))
    assert torch.equal(ours.latents, plain.latents)
    assert torch.equal(ours.noise, plain.noise)
    assert ours.paths == plain.paths


# -- how it goes about it ---------------------------------------------------------------------


def drawn(found):
    return [extras["nodes"] for extras in found.extras]


@pytest.mark.parametrize("mode", ["sample", "search"])
@pytest.mark.parametrize("parallel", [1, 4])
def test_a_kept_tree_goes_on_as_if_never_stopped(tmp_path, mode, parallel):
    ours = method(24, mode=mode, parallel=parallel)
    whole = ours.run(task("ab"))
    for extras in replace(ours, rollouts=8).run(task("ab")).extras:
        extras["tree"].save(tmp_path / extras["tree"].prompt)
    trees = [Tree.load(tmp_path / prompt) for prompt in "ab"]
    assert [len(tree) for tree in trees] == [8, 8]
    resumed = ours.grow(task("ab"), trees)
    assert drawn(resumed) == drawn(whole)
    assert torch.equal(resumed.extras[1]["pictures"], whole.extras[1]["pictures"])
    assert torch.equal(resumed.latents, whole.latents)
    assert resumed.paths == whole.paths
    assert resumed.costs == whole.costs


def test_a_search_may_be_stopped_after_any_round():
    here, ours = task("ab"), method(24, parallel=2)
    trees = [Tree(prompt, ours.levels(here.policy.grid)) for prompt in "ab"]
    rounds = ours.rounds(here, trees)
    for _ in range(3):
        next(rounds)
    assert [len(tree) for tree in trees] == [6, 6]
    assert drawn(ours.grow(here, trees)) == drawn(ours.run(task("ab")))


def test_another_tree_is_refused():
    here, ours = task("a"), method(4)
    with pytest.raises(DiffalignError, match="is of the prompt 'b'"):
        ours.grow(here, [Tree("b", ours.levels(here.policy.grid))])
    with pytest.raises(DiffalignError, match=r"levels \[0, 4\]"):
        ours.grow(here, [Tree("a", [0, 4])])


def test_results_depend_neither_on_the_batch_nor_on_other_prompts():
    ours = method(12, mode="search", parallel=3)
    together = ours.run(task(["a", "b", "a"], batch=4))
    for prompts, at in ((["b"], 1), (["a", "a"], 2)):
        assert drawn(ours.run(task(prompts, batch=1)))[-1] == drawn(together)[at]
    assert drawn(together)[0] != drawn(together)[2]


def test_nodes_at_different_depths_share_a_pass_and_each_step_is_paid_once():
    seen = []

    class Watched(FinitePolicy):
        def predict(self, x, t, cond):
            seen.append(len(set(t.tolist())))
            return super().predict(x, t, cond)

    found = method(30, mode="search", branching=1.0, growth=0.5).run(
        task([str(n) for n in range(6)], policy=Watched())
    )
    assert max(seen) > 1
    for extras, cost in zip(found.extras, found.costs, strict=True):
        levels = extras["tree"].levels
        new = [node for node in extras["nodes"] if node["depth"] > 1]
        assert cost.denoiser_calls == sum(levels[n["depth"] - 1] - levels[n["depth"] - 2] for n in new)
        assert cost.denoiser_calls < 30 * 4
        assert cost.reward_calls == 30


def test_nodes_have_as_many_children_as_their_visits_allow():
    found = method(60, branching=1.0, growth=0.5).run(task())
    nodes = found.extras[0]["nodes"]
    children = [sum(other["parent"] == n for other in nodes) for n in range(len(nodes))]
    inner = [n for n, node in enumerate(nodes) if node["picture"] is None]
    assert all(children[n] <= nodes[n]["visits"] ** 0.5 + 1 for n in inner)
    assert max(children) > 3


def test_searching_goes_where_the_reward_is():
    """Chance finds the best of eight modes once in eight, give or take 0.02; samples choose theirs late."""
    here = task("abcd", reward, policy=MixturePolicy(10), rule=DDIM())
    ours = DTS(rollouts=64, lam=1.0, c_uct=1.0, branching=1.0, growth=0.5, branches=(0.6, 0.7, 0.8))
    pictures = torch.stack([extras["pictures"] for extras in ours.run(here).extras])
    share = (reward(pictures.flatten(0, 1), []) > 9).float().mean()
    assert float(share) > 0.25


def sometimes_nan(images, prompts):
    """No score for what is below -1."""
    return is_one(images, prompts).where(images[:, 0] > -1, torch.nan)


@pytest.mark.parametrize("mode", ["sample", "search"])
def test_leaves_without_a_score_lose_and_are_counted(mode):
    found = method(40, mode=mode).run(task(score=sometimes_nan))
    tree = found.extras[0]["tree"]
    lost = {
        leaf for leaf, scores in zip(tree.leaves, tree.scores, strict=True) if scores["total"] == -math.inf
    }
    assert 0 < len(lost) == found.costs[0].lost
    assert not lost.intersection(tree.sample(100, LAM))
    assert found.total[0] == 1
    assert all(node["value"] is None or math.isfinite(node["value"]) for node in found.extras[0]["nodes"])


def test_bad_settings_are_refused():
    with pytest.raises(DiffalignError, match="branches at level 0 needs noise in the steps to level 1"):
        DTS(branches=QUARTERS).run(task(rule=ODE()))
    with pytest.raises(DiffalignError, match="no multiple of parallel = 3"):
        DTS(rollouts=8, parallel=3).run(task())
    assert len(DTS(rollouts=2, branches=()).run(task(rule=Says(0.0)))) == 1


@pytest.mark.parametrize("name", ["StableDiffusionXL", "Flux"])
def test_every_edge_of_a_pipelines_tree_is_a_stretch_of_its_denoising(name):
    family = FAMILIES[name]
    policy = Policy(family.make(), steps=family.steps, call=family.call, lora=None)
    ours = DTS(
        rollouts=8, mode="sample", lam=100.0, branching=1.0, growth=0.5, branches=(0.25, 0.75), parallel=2
    )
    here = Task(
        policy, composed(lambda x, p: x.flatten(1).mean(1)), family.prompts[:2], ours.default_rule(policy)
    )
    found = ours.run(here)
    assert any(cost.denoiser_calls < 8 * family.steps for cost in found.costs)
    for p, extras in enumerate(found.extras):
        tree, owner = extras["tree"], torch.full((8,), p)
        above = [tree.parent[leaf] for leaf in tree.leaves]
        start = torch.stack([tree.latents_of(node) for node in above])
        ends = here.sample(start, owner, here.seeds("steps", owner, torch.arange(8)), start=tree.levels[-2])
        torch.testing.assert_close(ends, extras["pictures"], rtol=1e-3, atol=1e-3)
