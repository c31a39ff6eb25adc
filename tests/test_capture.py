"""Capturing: what is learnt about a pipeline is right for it, or the pipeline is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from diffalign.errors import DiffalignError
from diffalign.models.conditioning import Batch, Conditioning
from diffalign.models.layout import learn
from diffalign.models.schedulers import is_flow
from diffalign.models.stub import Stub
from diffalign.policy import Policy
from diffalign.steps import DDIM
from diffalign.walk import log_prob, rollout

from .families import FAMILIES
from .families.base import t5_tokenizer
from .families.stable_diffusion import BETAS, MASK, PICTURE, SIZE, sd15_parts, stable_diffusion

pytestmark = pytest.mark.usefixtures("one_thread")


def make(pipe: Any = None, **settings: Any) -> Policy:
    given = {"steps": 4, "guidance_scale": 7.5, "call": SIZE}
    return Policy(pipe or stable_diffusion(), **{**given, **settings})


# --- conditioning ---


def captured(prompts: int, tokens: int = 7) -> dict[str, Any]:
    """What a pipeline with doubled batch and two tokens' worth of shared things hands over."""
    rows = torch.arange(float(prompts))[:, None, None].expand(prompts, tokens, 3)
    return {
        "doubled": torch.cat([rows - 100, rows]),
        "ids": torch.zeros(2, 3),
        "shapes": [[(1, 8, 8)]] * prompts,
        "none": None,
        "nested": ({"row": rows[:, 0]}, 3.5),
    }


def test_a_leaf_whose_length_happens_to_be_the_batch_is_not_split() -> None:
    layout = learn(captured(2), captured(3), (2, 3))
    kinds = {k: layout.leaves[v].kind for k, v in layout.skeleton.items() if isinstance(v, int)}
    assert kinds == {"doubled": "rows", "ids": "shared", "shapes": "items", "none": "absent"}
    assert layout.leaves[layout.skeleton["doubled"]].blocks == 2


def conditioning(*numbers: int, tokens: int = 7) -> Conditioning:
    layout = learn(captured(2), captured(3), (2, 3))
    batch = Batch(layout, layout.flatten(captured(10, tokens)), 10)
    return Conditioning(batch)[list(numbers)]


def test_rows_are_chosen_in_both_halves_of_a_doubled_leaf() -> None:
    tree = conditioning(4, 2, 2).batch.tree()
    assert tree["doubled"][:, 0, 0].tolist() == [-96, -98, -98, 4, 2, 2]
    assert len(tree["shapes"]) == 3
    assert tree["nested"][0]["row"][:, 0].tolist() == [4, 2, 2]


def test_conditioning_behaves_like_a_tensor() -> None:
    a, b = conditioning(1, 2), conditioning(5)
    joined = Conditioning.cat([a, b])
    assert len(joined) == 3
    assert joined.batch.tree()["doubled"][:, 0, 0].tolist() == [-99, -98, -95, 1, 2, 5]
    for rows in (torch.tensor([2, 0]), [2, 0], slice(None, None, 2), torch.tensor([True, False, True])):
        assert len(joined[rows]) == 2
    assert joined.repeat_interleave(2).batch.tree()["nested"][0]["row"][:, 0].tolist() == [1, 1, 2, 2, 5, 5]


def test_conditioning_of_unknown_padding_is_not_concatenated() -> None:
    with pytest.raises(DiffalignError, match="different length"):
        Conditioning.cat([conditioning(1), conditioning(1, tokens=9)])


def test_conditioning_survives_the_disk() -> None:
    before = make().encode(["cat", "two dogs"])
    state = before.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    after = Conditioning.from_state_dict(state)
    policy, x = make(), torch.randn(2, 4, 8, 8)
    time = policy.grid.timesteps[[1, 1]]
    assert torch.equal(policy.predict(x, time, before), policy.predict(x, time, after))


def test_the_pipeline_s_prologue_runs_once_for_a_rollout_and_all_its_micro_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For inpainting it encodes a picture; the log-probs are those of arguments captured anew, bit for bit."""
    family = FAMILIES["StableDiffusionInpaint"]
    policy, calls = Policy(family.make(), steps=family.steps, call=family.call), [0, 0]
    run, vae = policy.shell.run, policy.shell.pipe.vae
    monkeypatch.setattr(policy.shell, "run", counted(run, calls, 0))
    monkeypatch.setitem(vae.__dict__, "encode", counted(vae.encode, calls, 1))
    prompts, seeds = ["cat", "cat", "two dogs", "two dogs"], [0, 1, 2, 3]
    batch = rollout(policy, DDIM(), prompts, seeds, noise_seeds=seeds, group=[0, 0, 1, 1], batch=2)
    assert calls == [3, 3], "two prompts are encoded, then the arguments for both are captured"
    for rows in ([0, 1], [2, 3], [1, 2], [3]):
        cols, at = torch.ones(len(rows), dtype=torch.long), torch.tensor(rows)
        anew = replace(batch, cond=Conditioning(batch.cond.batch))
        found = log_prob(policy, batch, at, cols)
        assert torch.equal(found, log_prob(policy, anew, at, cols))
        if rows in ([0, 1], [2, 3]):
            assert torch.equal(found, batch.log_probs[at, cols])
    assert calls == [3 + 4, 3 + 4], "only what was captured anew ran the prologue again"


def counted(function: Any, calls: list[int], which: int) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls[which] += 1
        return function(*args, **kwargs)

    return call


class Words(nn.Module):
    """A text encoder that looks at each token and, through the mask, at how many there are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(t5_tokenizer()), width)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        seen = self.embedding(input_ids) * (1 + attention_mask.sum(1)[:, None, None] / 10)
        return SimpleNamespace(hidden_states=[seen])


def qwen_with_text() -> Policy:
    """Qwen-Image pads to the longest prompt, and gives no mask where nothing is padded."""
    family = FAMILIES["QwenImage"]
    pipe = family.make()
    torch.manual_seed(0)
    words = Words(pipe.transformer.config.joint_attention_dim).requires_grad_(False)
    pipe.register_modules(text_encoder=words, tokenizer=t5_tokenizer(32))
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0
    return Policy(pipe, steps=4, call={**family.call, "negative_prompt": "cat"})


@torch.no_grad()
def test_prompts_of_different_length_are_padded_and_masked() -> None:
    policy = qwen_with_text()
    short, long = policy.encode(["cat"]), policy.encode(["a small blue house on a hill"])
    x, time = policy.noise([1, 2]), policy.grid.timesteps[[1, 2]]
    alone = torch.cat([policy.predict(x[:1], time[:1], short), policy.predict(x[1:], time[1:], long)])
    for together in (Conditioning.cat([short, long]), policy.encode(["cat", "a small blue house on a hill"])):
        assert torch.allclose(policy.predict(x, time, together), alone, atol=1e-5)
    assert short.batch.tree()["encoded"][0][1] is None
    masks = Conditioning.cat([short, long]).batch.tree()["encoded"][0][1]
    assert masks[0].sum() < masks[1].sum() == masks.shape[1]


# --- stub ---


def test_stub_follows_every_argument_smoothly_and_nothing_else() -> None:
    stub, x = Stub(), torch.randn(2, 4, 3, 3)
    stub.learn("unet", x, (torch.zeros(2, 8, 3, 3),))
    given = {"t": torch.tensor(5.0), "hint": torch.randn(2, 6), "scale": 1.0}

    def out(name: str = "unet", rows: Tensor = x, **changes: Any) -> Tensor:
        return stub(name, rows, (rows,), {**given, **changes})[0]

    base = out()
    assert base.shape == (2, 8, 3, 3)
    assert base.std() == pytest.approx(1, abs=0.2)
    assert torch.equal(base, out())
    others = {"t": torch.tensor(6.0), "hint": -given["hint"], "scale": 2.0}
    for name, value in others.items():
        assert (out(**{name: value}) - base).abs().max() > 0.1
    assert (out("transformer_2") - base).abs().max() > 0.1
    assert (out(rows=x + 1e-7) - base).abs().max() < 1e-5
    nudged = x.clone()
    nudged[1] += 1
    assert torch.equal(out(rows=nudged)[0], base[0])


# --- shell ---


def test_the_users_pipeline_stays_untouched() -> None:
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)

    def picture() -> Tensor:
        seed = torch.Generator().manual_seed(3)
        return torch.as_tensor(
            pipe("cat", **SIZE, num_inference_steps=3, generator=seed, output_type="pt")[0]
        )

    before, parts = picture(), dict(pipe.__dict__)
    policy = make(pipe, dtype="bfloat16")
    assert torch.equal(picture(), before)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.fill_(0.5)
    policy.predict(policy.noise([1]), policy.grid.timesteps[:1], policy.encode(["cat"]))
    policy.decode(policy.noise([1]))
    assert torch.equal(picture(), before)
    assert parts.keys() == pipe.__dict__.keys()
    assert all(pipe.__dict__[name] is part for name, part in parts.items() if name != "_num_timesteps")
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("predict", ["template", "replay"])
def test_the_global_random_state_is_left_alone(predict: str) -> None:
    policy = make(predict=predict)
    cond = policy.encode(["cat"])
    torch.manual_seed(11)
    before = torch.get_rng_state()
    x = policy.noise([1])
    policy.predict(x, policy.grid.timesteps[:1], cond)
    policy.decode(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_text_is_encoded_once_a_prompt_and_without_encoders_afterwards() -> None:
    policy = make()
    calls: list[int] = []
    encoder = policy.shell.pipe.text_encoder
    encoder.register_forward_hook(lambda *_: calls.append(1))
    first = policy.encode(["cat", "two dogs", "cat"])
    count = len(calls)
    assert count == 4  # two prompts, each with its negative prompt
    policy.encode(["two dogs"])
    policy.free_text_encoders()
    x, time = policy.noise([1, 2, 3]), policy.grid.timesteps[[0, 0, 0]]
    again = policy.encode(["cat", "two dogs", "cat"])
    assert torch.equal(policy.predict(x, time, first), policy.predict(x, time, again))
    assert len(calls) == count
    with pytest.raises(DiffalignError, match="a red fox"):
        policy.encode(["a red fox"])


# --- schedulers ---


def test_schedulers_only_give_the_grid() -> None:
    grids = []
    for kind in (PNDMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler):
        pipe = stable_diffusion()
        pipe.scheduler = kind(**BETAS, timestep_spacing="leading")
        grids.append(make(pipe).grid)
    assert grids[0].timesteps.tolist() == [751, 501, 251, 1]
    for grid in grids[1:]:
        assert torch.equal(grid.timesteps, grids[0].timesteps)
        assert torch.allclose(grid.signal[:-1], grids[0].signal[:-1], atol=1e-6)


def test_what_a_flow_is_does_not_depend_on_alphas() -> None:
    for kind in (UniPCMultistepScheduler, DPMSolverMultistepScheduler):
        assert is_flow(kind(prediction_type="flow_prediction", use_flow_sigmas=True))
        assert not is_flow(kind())
        assert hasattr(kind(prediction_type="flow_prediction"), "alphas_cumprod")


def test_another_kind_of_model_is_refused() -> None:
    pipe = stable_diffusion()
    pipe.scheduler = EDMEulerScheduler()
    with pytest.raises(DiffalignError, match="StableDiffusionPipeline: EDMEulerScheduler"):
        make(pipe)


# --- predict ---


@pytest.mark.parametrize("call", [{"guidance_rescale": 0.7}, {"guidance_rescale": 0.0}])
@torch.no_grad()
def test_template_equals_replay_at_every_step(call: dict[str, Any]) -> None:
    policy = make(call={**SIZE, **call})
    assert "template" in policy.describe()
    replay = make(call={**SIZE, **call}, predict="replay")
    cond = policy.encode(["cat", "a small blue house"])
    x = policy.noise([1, 2])
    for time in policy.grid.timesteps:
        fast, slow = (p.predict(x, time.expand(2), cond) for p in (policy, replay))
        assert (fast - slow).abs().max() <= 2e-6 * slow.abs().max()


@pytest.mark.parametrize("name", ["StableDiffusion", "QwenImage", "Lumina2", "LTX", "ZImage", "Wan"])
@torch.no_grad()
def test_template_equals_replay_in_half_precision(name: str) -> None:
    """Coarse rounding must not let a wrong rule of guidance pass for the right one."""
    family = FAMILIES[name]
    policy = Policy(family.make(), steps=family.steps, call=family.call, dtype="bfloat16")
    inputs = family.inputs(2)
    halves = {k: [row.bfloat16() for row in v] for k, v in inputs.items() if k.endswith("embeds")}
    inputs |= {k: v if isinstance(inputs[k], list) else torch.stack(v) for k, v in halves.items()}
    cond = policy.encode(inputs.pop("prompt", None), **inputs)
    x, time = policy.noise([1, 2]), policy.grid.timesteps[[1, 1]]
    fast, slow = policy.predict(x, time, cond), policy.capture.replay(x, 1, cond)
    assert (fast.double() - slow.double()).norm() <= 0.01 * slow.double().norm()


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch() -> None:
    for predict in ("template", "replay"):
        policy = make(predict=predict)
        cond, x = policy.encode(["cat", "two dogs", "cat"]), policy.noise([1, 2, 3])
        time = policy.grid.timesteps[[3, 0, 1]]
        together = policy.predict(x, time, cond)
        for k in range(3):
            alone = policy.predict(x[[k]], time[[k]], cond[[k]])
            assert torch.allclose(together[[k]], alone, atol=1e-5)


def test_a_timestep_off_the_grid_is_an_error() -> None:
    policy = make(predict="replay")
    with pytest.raises(DiffalignError, match="on the grid"):
        policy.predict(policy.noise([1]), torch.tensor([500]), policy.encode(["cat"]))


def test_a_pipeline_that_blends_a_picture_into_its_latents_is_refused() -> None:
    pipe = StableDiffusionInpaintPipeline(**sd15_parts())
    with pytest.raises(
        DiffalignError, match="StableDiffusionInpaintPipeline: this pipeline changes its latents"
    ):
        make(pipe, call={**SIZE, "image": PICTURE, "mask_image": MASK})


def test_a_pipeline_that_skips_steps_is_refused() -> None:
    pipe = StableDiffusionInpaintPipeline(**sd15_parts(in_channels=9))
    with pytest.raises(DiffalignError, match=r"only 2 of its 4 steps.*strength"):
        make(pipe, call={**SIZE, "image": PICTURE, "mask_image": MASK, "strength": 0.5})


def test_a_template_that_does_not_exist_is_an_error_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    class Wobbly(type(stable_diffusion())):  # type: ignore[misc]
        """Guidance of a kind that no rule knows."""

        @property
        def guidance_scale(self) -> Any:
            return _Squared(self._guidance_scale)

    def wobbly() -> Any:
        parts = {k: v for k, v in sd15_parts().items() if k != "requires_safety_checker"}
        return Wobbly(**parts, requires_safety_checker=False)

    policy = make(wobbly())
    assert "replay" in policy.describe()
    assert "none of the rules" in policy.describe()
    assert "Wobbly: predict replays the pipeline" in caplog.text
    with pytest.raises(DiffalignError, match="Wobbly: predict='template' is not possible"):
        make(wobbly(), predict="template")


class _Squared:
    """A guidance scale that multiplies by squares."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __mul__(self, other: Tensor) -> Tensor:
        return self.scale * other.square()

    def __gt__(self, other: float) -> bool:
        return self.scale > other


def test_policies_of_one_pipeline_do_not_meet() -> None:
    pipe = stable_diffusion()
    one, two = make(pipe), make(copy.copy(pipe))
    x, time = one.noise([1]), one.grid.timesteps[:1]
    before = two.predict(x, time, two.encode(["cat"]))
    with torch.no_grad():
        for parameter in one.trainable():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    assert torch.equal(two.predict(x, time, two.encode(["cat"])), before)
    assert not torch.equal(one.predict(x, time, one.encode(["cat"])), before)
