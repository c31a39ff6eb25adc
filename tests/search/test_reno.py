"""ReNO against closed forms on linear generators, and one prompt at a time on real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffalign.errors import DiffalignError
from diffalign.grid import Grid
from diffalign.launching.redraw import redraw
from diffalign.models.loading import load_pipeline
from diffalign.policy import Policy
from diffalign.reward import AnyReward
from diffalign.rewarding.compose import Composite, composed
from diffalign.search import Task
from diffalign.search.reno import Ascent, ReNO, regulariser
from diffalign.searching.found import Found
from diffalign.steps import DDIM, ODE, FlowSDE, StepRule
from diffalign_rewards import _open_clip
from tests.families import FAMILIES
from tests.toys import ChainPolicy

pytestmark = pytest.mark.usefixtures("one_thread")
D = 6
FREE = {"clip": None, "reg_weight": 0.0, "momentum": 0.0}
PROMPTS = ["cat", "a red fox in the snow", "two dogs"]


class Linear(ChainPolicy):
    """One step from noise z to the sample G z; `level` is the noise of a flow's first level."""

    def __init__(self, matrix: Tensor, level: float = 1.0, flow: bool = False) -> None:
        super().__init__(1, matrix.shape[1])
        self.matrix, self.level = matrix, level
        ends = torch.tensor([level, 0.0], dtype=torch.float64)
        self.grid = Grid(torch.tensor([999.0]), 1 - ends, ends, "flow_prediction" if flow else "sample")

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return super().noise(seeds) * (self.level if self.grid.flow else 1.0)

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.denoiser_calls += len(x)
        made = x @ self.matrix.T
        return (x - made) / self.level if self.grid.flow else made


class Watched(Task):
    """A task that remembers the noise of every sample, by prompt."""

    def offer(self, owner: Tensor, latents: Tensor, noise: Tensor, scores: dict[str, Tensor]) -> None:
        self.seen = getattr(self, "seen", [[] for _ in self.prompts])
        for b, prompt in enumerate(owner.tolist()):
            self.seen[prompt].append(noise[b].detach().clone())
        super().offer(owner, latents, noise, scores)


def smooth(score: Any) -> AnyReward:
    """The function as a reward that declares its gradient."""
    score.differentiable = True
    return score


def matrix(seed: int = 0) -> Tensor:
    return torch.eye(D) + 0.2 * torch.randn(D, D, generator=torch.Generator().manual_seed(seed))


def towards(goal: Tensor) -> AnyReward:
    return smooth(lambda images, prompts: -(images - goal).square().sum(1) / 2)


def task(
    policy: Any,
    reward: AnyReward,
    prompts: Sequence[str] = ("cat",),
    rule: StepRule | None = None,
    **settings: Any,
) -> Watched:
    return Watched(policy, composed(reward), prompts, rule or ReNO().default_rule(policy), **settings)


# -- the regulariser --------------------------------------------------------------------------


def test_regulariser_is_least_at_the_root_of_d_minus_one() -> None:
    way = torch.nn.functional.normalize(torch.randn(1, 4, 8, 8), dim=(1, 2, 3))
    for norm, sign in ((0.9, -1), (1.0, 0), (1.1, 1)):
        z = (way * norm * 255**0.5).double().requires_grad_()
        (slope,) = torch.autograd.grad(regulariser(z).sum(), z)
        outwards = float((slope * way).sum())
        assert abs(outwards) < 1e-4 if sign == 0 else outwards * sign > 1


def test_regulariser_is_minus_the_log_density_of_a_chi_distributed_norm() -> None:
    norms = torch.tensor([3.0, 5.0, 8.0], dtype=torch.float64)
    z = torch.nn.functional.normalize(torch.randn(3, 16, dtype=torch.float64), dim=1) * norms[:, None]
    squared = torch.distributions.Chi2(torch.tensor(16.0, dtype=torch.float64))
    density = squared.log_prob(norms.square()) + (2 * norms).log()
    assert torch.allclose(regulariser(z).diff(), -density.diff())


def test_without_a_reward_the_norm_goes_to_the_root_of_d_minus_one() -> None:
    nothing = smooth(lambda images, prompts: 0 * images.sum(1))
    of = task(Linear(torch.eye(64)), nothing)
    ReNO(iterations=200, lr=0.5, reg_weight=1.0, clip=None, momentum=0.0).run(of)
    assert float(of.seen[0][-1].norm()) == pytest.approx(63**0.5, abs=1e-4)


# -- closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        ReNO(iterations=400, lr=0.1, clip=None, reg_weight=0.0),
        ReNO(iterations=1000, lr=0.05, optimizer="adam", clip=None, reg_weight=0.0),
        ReNO(iterations=100, lr=1.0, optimizer="lbfgs", clip=None, reg_weight=0.0),
    ],
    ids=lambda method: method.optimizer,
)
@pytest.mark.parametrize(
    "policy", [Linear(matrix()), Linear(matrix(), 0.8, flow=True)], ids=["sample", "flow"]
)
def test_quadratic_reward_of_a_linear_generator_is_solved(policy: Linear, method: ReNO) -> None:
    goal = torch.randn(D, generator=torch.Generator().manual_seed(4))
    found = method.run(task(policy, towards(goal)))
    assert torch.allclose(found.noise[0], torch.linalg.solve(policy.matrix, goal), atol=1e-3)
    assert torch.allclose(found.latents[0], goal, atol=1e-3)


@pytest.mark.parametrize("nesterov", [True, False])
def test_first_step_goes_along_the_pulled_back_reward(nesterov: bool) -> None:
    """Gᵀa, clipped to 0.1; momentum looks ahead once where it is Nesterov's."""
    policy, a = Linear(matrix()), torch.randn(D)
    of = task(policy, smooth(lambda images, prompts: images @ a))
    ReNO(iterations=2, reg_weight=0.0, nesterov=nesterov).run(of)
    before, after = of.seen[0]
    way = torch.nn.functional.normalize(policy.matrix.T @ a, dim=0)
    assert torch.allclose(after - before, 5 * 0.1 * (1.9 if nesterov else 1.0) * way, atol=1e-5)


def test_clipping_takes_reward_and_regulariser_together_and_each_prompt_by_itself() -> None:
    """The steep prompt is clipped, the gentle one is not."""
    steep = smooth(
        lambda images, prompts: images.sum(1) * torch.tensor([100.0 if p == "cat" else 1e-3 for p in prompts])
    )
    of = task(Linear(torch.eye(D)), steep, PROMPTS[:2])
    ReNO(iterations=2, lr=1.0, momentum=0.0).run(of)
    moves = [float((after - before).norm()) for before, after in of.seen]
    z = of.seen[1][0]
    gentle = 1e-3 * torch.ones(D) - 0.01 * (1 - (D - 1) / z.square().sum()) * z
    assert moves[0] == pytest.approx(0.1, rel=1e-4)
    assert moves[1] == pytest.approx(float(gentle.norm()), rel=1e-3)


def test_weights_of_several_rewards_are_those_of_the_composite() -> None:
    a, b = torch.eye(D)[0], torch.eye(D)[1]
    pair = Composite(
        {"a": smooth(lambda images, prompts: images @ a), "b": smooth(lambda images, prompts: images @ b)},
        {"a": 5.0, "b": 0.05},
    )
    of = task(Linear(torch.eye(D)), pair)
    found = ReNO(iterations=2, lr=0.1, **FREE).run(of)
    move = of.seen[0][1] - of.seen[0][0]
    assert torch.allclose(move, 0.5 * a + 0.005 * b, atol=1e-6)
    assert float(found.total) == pytest.approx(
        5 * float(found.scores["a"]) + 0.05 * float(found.scores["b"]), rel=1e-5
    )


# -- selection, cost, early stop --------------------------------------------------------------


def bumpy(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return (3 * images).sin().sum(1)


def test_best_is_that_of_all_evaluations_by_reward_alone_and_never_falls() -> None:
    scores: list[Tensor] = []

    def heard(images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores.append(bumpy(images, prompts))
        return scores[-1]

    found = ReNO(iterations=30, lr=20.0, reg_weight=1.0).run(task(Linear(matrix()), smooth(heard), PROMPTS))
    every = torch.stack(scores)
    assert not bool((every.diff(dim=0) >= 0).all())
    assert torch.allclose(found.total, every.amax(0))
    assert torch.allclose(found.first_scores["total"], every[0])
    for k, path in enumerate(found.paths):
        assert [mark.best for mark in path] == pytest.approx(every[:, k].cummax(0).values.tolist())


def test_fifty_evaluations_are_forty_nine_steps() -> None:
    found = ReNO().run(task(Linear(matrix()), smooth(bumpy)))
    (cost,) = found.costs
    assert (cost.denoiser_calls, cost.reward_calls, cost.gradients, cost.lost) == (50, 50, 49, 0)


def test_patience_ends_each_prompt_by_itself() -> None:
    """Two prompts stand at their maximum from the start; the third climbs to the end."""
    level = smooth(
        lambda images, prompts: images.sum(1) * torch.tensor([float(p == "two dogs") for p in prompts])
    )
    found = ReNO(iterations=20, patience=3).run(task(Linear(torch.eye(D)), level, PROMPTS))
    assert [cost.denoiser_calls for cost in found.costs] == [4, 4, 20]


# -- many prompts at once ---------------------------------------------------------------------


def test_what_is_not_finite_begins_again_and_disturbs_no_other_prompt() -> None:
    broken = {"a red fox in the snow": 2}

    def fragile(images: Tensor, prompts: Sequence[str]) -> Tensor:
        values = bumpy(images, prompts)
        for b, prompt in enumerate(prompts):
            if broken.get(prompt, 0) > 0:
                broken[prompt] -= 1
                values = values * torch.where(torch.arange(len(prompts)) == b, torch.nan, 1.0)
        return values

    method = ReNO(iterations=8)
    together = task(Linear(matrix()), smooth(fragile), PROMPTS)
    found = method.run(together)
    alone = task(Linear(matrix()), smooth(bumpy), PROMPTS)
    method.run(alone)
    assert [cost.lost for cost in found.costs] == [0, 2, 0]
    assert bool(found.total.isfinite().all())
    for k in (0, 2):
        assert torch.equal(torch.stack(together.seen[k]), torch.stack(alone.seen[k]))
    again = together.seen[1]
    assert float((again[1] - again[0]).norm()) > 1
    assert float((again[3] - again[2]).norm()) < 1


def test_gradient_that_is_not_finite_begins_again() -> None:
    """The root of 0 has a value and no slope."""
    root = smooth(lambda images, prompts: (0 * images).sum(1).sqrt())
    of = task(Linear(matrix()), root)
    assert ReNO(iterations=3).run(of).costs[0].lost == 0
    assert float((of.seen[0][1] - of.seen[0][0]).norm()) > 1


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Double precision where the code asks for single; towers that are kept loaded are no others' afterwards."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(nn.Module, "float", nn.Module.double)
    _open_clip.from_folder.cache_clear()
    yield
    _open_clip.from_folder.cache_clear()


def noises(policy: Any, prompts: Sequence[str], reward: AnyReward, batch: int, **settings: Any) -> Tensor:
    """The noise (P, ...) after 10 iterations."""
    of = task(policy, reward, prompts, batch=batch, **settings)
    ReNO(iterations=11).run(of)
    return torch.stack([seen[-1] for seen in of.seen])


@pytest.mark.usefixtures("double")
def test_many_prompts_at_once_are_each_prompt_alone_on_the_emoji_model() -> None:
    """In double precision: where pixels are clamped the gradient has edges, and edges magnify single rounding."""
    from diffalign_rewards.emoji_clip import EmojiClip

    pipeline = load_pipeline("emoji", None, None, None, None).to(torch.float64)
    policy = Policy(pipeline, steps=2, guidance_scale=1.0, lora=False)
    prompts = ["red apple, 3d", "cat face, flat", "blue heart, 3d"]
    together = noises(policy, prompts, EmojiClip(), batch=3)
    assert together.dtype == torch.float64
    assert float((together - noises(policy, prompts, EmojiClip(), batch=1)).abs().max()) <= 1e-9
    assert float((together - noises(policy, prompts, EmojiClip(), batch=3, seed=1)).abs().max()) > 1


# -- real pipelines ---------------------------------------------------------------------------


def textured(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A smooth function of pictures (B, 3, H, W) or videos (B, F, 3, H, W), another one for each prompt."""
    wave = torch.linspace(0, 9, images[0].numel()).reshape(images.shape[1:])
    return (
        torch.stack(
            [(image * (wave + len(p)).sin()).mean() for image, p in zip(images, prompts, strict=True)]
        )
        * 30
    )


textured.differentiable = textured.video = True  # type: ignore[attr-defined]


def tiny(name: str, steps: int = 1) -> Policy:
    family = FAMILIES[name]
    return Policy(family.make(), steps=steps, call=family.call_unguided, lora=False)


FEW = [("StableDiffusionXL", 1), ("StableDiffusion3", 1), ("Flux", 2), ("Wan", 1)]


@pytest.mark.parametrize(("name", "steps"), FEW)
def test_reno_climbs_on_every_kind_of_pipeline(name: str, steps: int) -> None:
    policy = tiny(name, steps)
    found = ReNO(iterations=5, lr=2.0)(policy, PROMPTS[:2], textured)
    assert isinstance(found, Found)
    assert bool((found.total > found.first_scores["total"]).all())
    assert [cost.denoiser_calls for cost in found.costs] == [5 * steps] * 2
    again = textured(policy.decode(found.latents), PROMPTS[:2])
    assert torch.allclose(again, found.total, atol=1e-4)


def precise(name: str, steps: int) -> Policy:
    """A tiny pipeline in double precision, its VAE too."""
    family = FAMILIES[name]
    pipeline = family.make().to(torch.float64)
    pipeline.vae.register_to_config(force_upcast=False)
    return Policy(pipeline, steps=steps, call=family.call_unguided, lora=False)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "steps"), FEW)
def test_many_prompts_at_once_are_each_prompt_alone(name: str, steps: int) -> None:
    policy = precise(name, steps)
    together = noises(policy, PROMPTS, textured, batch=3)
    assert float((together - noises(policy, PROMPTS, textured, batch=1)).abs().max()) <= 1e-5


@pytest.mark.parametrize(("name", "rule"), [("StableDiffusion", DDIM()), ("StableDiffusion3", FlowSDE())])
def test_stochastic_rules_draw_the_same_noise_in_every_iteration(name: str, rule: StepRule) -> None:
    policy, heard = tiny(name, 3), []

    def listening(images: Tensor, prompts: Sequence[str]) -> Tensor:
        heard.append(textured(images, prompts))
        return heard[-1]

    ReNO(iterations=3, lr=1e-12).run(task(policy, smooth(listening), PROMPTS[:2], rule))
    assert torch.allclose(heard[0], heard[1], atol=1e-6)
    assert torch.allclose(heard[0], heard[2], atol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("name", "steps"), [("StableDiffusion", 1), ("StableDiffusion", 3), ("StableDiffusion3", 2)]
)
def test_gradient_is_the_slope_through_scheduler_and_vae(name: str, steps: int) -> None:
    of, method = task(precise(name, steps), textured, PROMPTS[:2]), ReNO()
    seeds = of.seeds("steps", of.everyone, torch.zeros(2).long())
    start = of.noise(of.everyone, torch.zeros(2).long())

    def losses(z: Tensor) -> tuple[Tensor, list[Ascent]]:
        ascents = [Ascent(k, z[k], seeds[k], method) for k in range(2)]
        method._evaluate(of, ascents)
        return torch.stack([ascent.loss for ascent in ascents]), ascents

    total, ascents = losses(start)
    gradient = torch.stack(torch.autograd.grad(total.sum(), [ascent.z for ascent in ascents]))
    for way in (gradient, torch.randn_like(gradient)):
        way = way / way.flatten(1).norm(dim=1)[:, None, None, None]
        with torch.no_grad():
            slope = (losses(start + 1e-6 * way)[0] - losses(start - 1e-6 * way)[0]) / 2e-6
        assert torch.allclose(slope, (gradient * way).flatten(1).sum(1), rtol=1e-5, atol=1e-7)


# -- memory -----------------------------------------------------------------------------------


def kept(policy: Policy, checkpoint: bool) -> tuple[int, Tensor]:
    """Bytes that the backward of an iteration is kept for, and the noise after it."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    of = task(policy, textured, PROMPTS[:2])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ReNO(iterations=2, checkpoint=checkpoint).run(of)
    return sum(storages.values()), torch.stack([seen[-1] for seen in of.seen])


@pytest.mark.parametrize("name", ["StableDiffusion", "Wan"])
def test_checkpointing_keeps_less_and_changes_nothing(name: str) -> None:
    policy = tiny(name)
    decode = vars(policy.shell.modules()["vae"]).get("decode")
    (much, plain), (little, same) = kept(policy, checkpoint=False), kept(policy, checkpoint=True)
    assert torch.allclose(plain, same, atol=1e-6)
    assert little < 0.7 * much
    assert not any(
        getattr(part, "is_gradient_checkpointing", False) for part in policy.shell.modules().values()
    )
    assert vars(policy.shell.modules()["vae"]).get("decode") is decode


# -- what is refused --------------------------------------------------------------------------


def test_rewards_without_a_gradient_are_refused_by_name() -> None:
    several = Composite({"sharp": smooth(bumpy), "jpeg": lambda images, prompts: images.sum(1), "size": len})
    with pytest.raises(DiffalignError, match=r"'jpeg', 'size'.*best_of_n"):
        ReNO()(Linear(matrix()), ["cat"], several)


def test_other_model_samples_from_the_noise_found() -> None:
    one, many = tiny("StableDiffusion"), tiny("StableDiffusion", 4)
    of = task(one, textured, PROMPTS[:2])
    found = ReNO(iterations=3).run(of)
    latents, scores = redraw(of, found.noise, many)
    for k, prompt in enumerate(found.prompts):
        alone = task(many, textured, [prompt], ODE())
        end = alone.sample(found.noise[[k]], alone.everyone, [0])
        assert torch.allclose(latents[[k]], end, atol=1e-5)
        assert float(scores["total"][k]) == pytest.approx(
            float(alone.score(end, alone.everyone)["total"]), abs=1e-4
        )


def test_other_flow_starts_from_its_own_noise_level() -> None:
    low, full = Linear(matrix(), 0.5, flow=True), Linear(matrix(), 1.0, flow=True)
    of = task(low, textured)
    z = torch.randn(1, D)
    assert torch.allclose(redraw(of, 0.5 * z, full)[0], z @ full.matrix.T, atol=1e-6)


def test_other_model_with_other_latents_is_refused() -> None:
    of = task(Linear(matrix()), textured)
    with pytest.raises(DiffalignError, match=r"decode_with makes latents of shape \(4,\).* of \(6,\)"):
        redraw(of, torch.randn(1, D), Linear(torch.eye(4)))
