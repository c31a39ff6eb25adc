"""The policy's weights: variants, snapshots, files, dtypes; and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.policy import LoraSpec, Policy

from .families import FAMILIES
from .families.stable_diffusion import SIZE, stable_diffusion

pytestmark = pytest.mark.usefixtures("one_thread")


def make(pipe: Any = None, **settings: Any) -> Policy:
    given = {"steps": 3, "guidance_scale": 7.5, "call": SIZE, "lora": LoraSpec(rank=2, alpha=6)}
    return Policy(pipe or stable_diffusion(), **{**given, **settings})


def output(policy: Policy, seed: int = 1) -> Tensor:
    """The guided output at one fixed point."""
    time = policy.grid.timesteps[[1, 1]]
    return policy.predict(policy.noise([seed, seed + 1]), time, policy.encode(["cat", "two dogs"]))


def perturb(policy: Policy, seed: int = 0) -> None:
    """Weights as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


KINDS = {"lora": {}, "full": {"lora": None}}


@pytest.fixture(params=KINDS)
def policy(request: pytest.FixtureRequest) -> Policy:
    return make(**KINDS[request.param])


def test_predict_gives_the_same_bits_twice(policy: Policy) -> None:
    assert torch.equal(output(policy), output(policy))


def test_reference_stays_what_the_pipeline_was(policy: Policy) -> None:
    base = output(policy)
    perturb(policy)
    assert (output(policy) - base).abs().max() > 1e-2
    with policy.using("reference"):
        assert torch.equal(output(policy), base)
    assert not torch.equal(output(policy), base)


def test_using_is_reentrant_and_survives_exceptions(policy: Policy) -> None:
    base = output(policy)
    perturb(policy)
    trained = output(policy)
    with policy.using("reference"), policy.using("policy"):
        assert torch.equal(output(policy), trained)
    with policy.using("reference"):
        with pytest.raises(DiffalignError, match="2 latents"), policy.using("policy"):
            policy.predict(policy.noise([1, 2]), policy.grid.timesteps[:1], policy.encode(["cat"]))
        assert torch.equal(output(policy), base)
    assert torch.equal(output(policy), trained)


def test_snapshot_keeps_what_it_saw(policy: Policy) -> None:
    perturb(policy)
    then = output(policy)
    policy.snapshot("round-1")
    perturb(policy, 1)
    now = output(policy)
    with policy.using("round-1"):
        assert torch.equal(output(policy), then)
    policy.snapshot("round-2")
    policy.snapshot("round-1")
    assert policy.snapshots == ["round-1", "round-2"]
    for name in policy.snapshots:
        with policy.using(name):
            assert torch.equal(output(policy), now)
    assert torch.equal(output(policy), now)


def test_only_the_policy_is_trained(policy: Policy) -> None:
    policy.snapshot("then")
    with policy.using("reference"):
        other = output(policy)
    with policy.using("then"):
        other = other + output(policy)
    assert not other.requires_grad
    output(policy).square().sum().backward()
    assert all(parameter.grad is not None for parameter in policy.trainable())
    assert {parameter.dtype for parameter in policy.trainable()} == {torch.float32}


def test_a_backward_through_the_policy_goes_on_after_the_reference_was_used() -> None:
    policy = make()
    perturb(policy)
    gradients = []
    for visit in (False, True):
        loss = output(policy).square().sum()
        if visit:
            with policy.using("reference"):
                output(policy)
        gradients.append(torch.autograd.grad(loss, policy.trainable()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for on in (False, True):
        torch.manual_seed(0)
        policy = make(gradient_checkpointing=on)
        perturb(policy)
        gradients.append(torch.autograd.grad(output(policy).square().sum(), policy.trainable()))
        assert policy.denoiser.is_gradient_checkpointing is on
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(*gradients, strict=True))


def test_state_is_a_copy_and_comes_back_bit_for_bit(policy: Policy) -> None:
    perturb(policy)
    state, then = policy.adapter_state(), output(policy)
    perturb(policy, 1)
    assert not torch.equal(output(policy), then)
    policy.load_adapter_state(state)
    assert torch.equal(output(policy), then)
    with pytest.raises(DiffalignError, match="not those of this policy"):
        policy.load_adapter_state({"x": torch.zeros(1)})


def test_saved_weights_come_back(policy: Policy, tmp_path: Path) -> None:
    perturb(policy)
    policy.save(tmp_path)
    other = make(lora=policy.adapters.lora)
    assert not torch.equal(output(other), output(policy))
    other.load(tmp_path)
    assert torch.equal(output(other), output(policy))
    with pytest.raises(DiffalignError, match="no"):
        other.load(tmp_path / "nowhere")


def test_lora_with_alpha_unlike_rank_does_the_same_in_a_plain_pipeline(tmp_path: Path) -> None:
    policy = make(lora=LoraSpec(rank=2, alpha=6, targets="attention+conv"), guidance_scale=1.0)
    perturb(policy)
    policy.save(tmp_path)
    plain = stable_diffusion()
    plain.load_lora_weights(tmp_path)
    x, time = policy.noise([1, 2]), policy.grid.timesteps[[1, 1]]
    words = policy.encode(["cat", "two dogs"])
    embeds = plain.encode_prompt(["cat", "two dogs"], "cpu", 1, False)[0]
    theirs = plain.unet(x, time[0], embeds).sample
    assert torch.allclose(policy.predict(x, time, words), theirs, atol=1e-5)


def test_lora_of_another_rank_is_not_loaded(tmp_path: Path) -> None:
    make().save(tmp_path)
    with pytest.raises(DiffalignError, match="another model, LoRA rank"):
        make(lora=LoraSpec(rank=3)).load(tmp_path)


@pytest.mark.parametrize(("weights", "mixed"), [("float32", "bf16"), ("bfloat16", "no"), ("float16", "fp16")])
@pytest.mark.parametrize("lora", [LoraSpec(rank=2), None])
def test_half_precision_keeps_what_is_trained_in_float32(
    weights: str, mixed: str, lora: LoraSpec | None
) -> None:
    if lora is None and mixed == "no":
        with pytest.raises(DiffalignError, match="full fine-tuning trains float32 weights"):
            make(lora=lora, dtype=weights)
        return
    exact = make(lora=lora)
    policy = make(lora=lora, dtype=weights, mixed_precision=mixed)
    state = exact.adapter_state()
    if lora:
        policy.load_adapter_state(state)
    a, b = output(policy), output(exact)
    assert {parameter.dtype for parameter in policy.trainable()} == {torch.float32}
    assert (a.float() - b).norm() / b.norm() < 0.1
    a.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in policy.trainable())
    assert policy.shell.pipe.vae.dtype == torch.float32
    assert policy.decode(policy.noise([1])).dtype == torch.float32


def test_offloading_changes_no_number() -> None:
    plain, policy = make(), make(offload=True)
    policy.load_adapter_state(plain.adapter_state())
    assert torch.equal(output(policy), output(plain))
    x = policy.noise([1])
    with torch.no_grad():
        assert torch.equal(policy.decode(x), plain.decode(x))


def test_noise_of_a_sample_depends_on_its_seed_alone() -> None:
    policy = make()
    assert torch.equal(policy.noise([3, 4])[1], policy.noise([4])[0])
    assert policy.noise([3]).shape == (1, *policy.latent_shape) == (1, 4, 8, 8)


def test_denoiser_calls_count_samples() -> None:
    policy = make()
    output(policy)
    output(policy)
    assert policy.denoiser_calls == 4


def test_describe_says_what_was_inferred() -> None:
    text = make().describe()
    for part in ("StableDiffusionPipeline", "UNet2DConditionModel", "rank 2, alpha 6", "to_q", "(4, 8, 8)",
                 "epsilon", "template, verified at every step", "latents x 2", "-6.5, 7.5"):  # fmt: skip
        assert part in text


def test_quantised_weights_take_a_lora(tmp_path: Path) -> None:
    pytest.importorskip("optimum.quanto")
    stable_diffusion().save_pretrained(tmp_path)
    settings = {"steps": 3, "call": SIZE, "lora": LoraSpec(rank=2)}
    exact = Policy.from_pretrained(str(tmp_path), **settings)
    policy = Policy.from_pretrained(str(tmp_path), quantize="quanto_int8", **settings)
    policy.load_adapter_state(exact.adapter_state())
    assert 0 < (output(policy) - output(exact)).norm() / output(exact).norm() < 0.1
    output(policy).square().sum().backward()
    assert all(parameter.grad is not None for parameter in policy.trainable())


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "call": ({"call": {"guidance_rescal": 0.5}}, "Did you mean 'guidance_rescale'"),
    "ours": ({"call": {"num_inference_steps": 5}}, "set by diffalign itself"),
    "predict": ({"predict": "templat"}, "Did you mean 'template'"),
    "target that fits nothing": (
        {"lora": LoraSpec(targets="nothing")},
        "'nothing' fits no layer. Give attention",
    ),
    "no targets": ({"lora": LoraSpec(targets=[])}, r"takes no LoRA on lora.targets = \[\]"),
    "broken target": ({"lora": LoraSpec(targets="to_(k")}, "is no regular expression: "),
    "target without a LoRA": (
        {"lora": LoraSpec(targets=".*")},
        "UNet2DConditionModel takes no LoRA on .*'\\.\\*'",
    ),
    "eta": ({"call": {**SIZE, "eta": 0.5}}, "'eta' is set by diffalign itself; .* use `rule`"),
    "prompt": ({"call": {**SIZE, "prompt": "cat"}}, "use `prompts`"),
    "callback": ({"call": {"callback_on_step_end_tensor_inputs": []}}, "set by diffalign itself"),
    "steps": ({"steps": 2000}, "StableDiffusionPipeline does not take steps=2000, .* ValueError: .*1000"),
    "size": ({"call": {"height": 48, "width": "wide"}}, "StableDiffusionPipeline does not take .*TypeError"),
    "odd size": (
        {"call": {"height": 50, "width": 16}},
        "ValueError: `height` and `width` have to be divisible",
    ),
    "half a size": ({"call": {"height": 32}}, r"makes {'height': 16, 'width': 16} where .*'height': 32"),
    "precision": ({"mixed_precision": "fp8"}, "unknown mixed_precision"),
    "two halves": ({"dtype": "float16", "mixed_precision": "bf16"}, "two kinds of half precision"),
    "dtype": ({"dtype": "float61"}, "Did you mean 'float16'"),
    "target": ({"lora": LoraSpec(targets=["to_kk"])}, "Did you mean 'to_k'"),
    "xformers": ({"attention": "xformers"}, "attention: xformers"),
    "attention": ({"attention": "sparse"}, "attention: sparse does not work"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named(name: str) -> None:
    settings, message = BAD[name]
    with pytest.raises(DiffalignError, match=message):
        make(**settings)


def test_a_lora_without_rank_is_named() -> None:
    with pytest.raises(DiffalignError, match="at least 1"):
        LoraSpec(rank=0)


@pytest.mark.parametrize("attention", ["sdpa", "native"])
def test_attention_backends_give_the_same(attention: str) -> None:
    plain, policy = make(), make(attention=attention)
    policy.load_adapter_state(plain.adapter_state())
    assert torch.allclose(output(policy), output(plain), atol=1e-5)


def test_bad_prompts_are_named() -> None:
    policy = make()
    with pytest.raises(DiffalignError, match="at least one prompt"):
        policy.encode([])
    with pytest.raises(DiffalignError, match=r"'a a a a a.* has 22 tokens and this model takes 16"):
        policy.encode(["cat", "a " * 20])
    with pytest.raises(DiffalignError, match="Did you mean 'prompt_embeds'"):
        policy.encode(prompt_embed=torch.zeros(1, 16, 16))


def test_shapes_that_do_not_belong_together_are_an_error() -> None:
    policy = make()
    with pytest.raises(DiffalignError, match="2 latents, 2 timesteps and 1 prompts"):
        policy.predict(policy.noise([1, 2]), policy.grid.timesteps[[0, 0]], policy.encode(["cat"]))


def test_models_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DiffalignError, match="no model folder"):
        Policy.from_pretrained("./nowhere", steps=2)
    with pytest.raises(DiffalignError, match=r"no model_index\.json"):
        Policy.from_pretrained(str(tmp_path), steps=2)
    with pytest.raises(DiffalignError, match="'emoji' is a folder, which has no revision 'main'"):
        Policy.from_pretrained("emoji", steps=2, revision="main")
    with pytest.raises(DiffalignError, match="unknown quantisation"):
        Policy.from_pretrained("emoji", steps=2, quantize="int3")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    pipe = stable_diffusion()
    pipe.save_pretrained(tmp_path)
    for file in (tmp_path / "unet").glob("*.safetensors"):
        file.unlink()
    pipe.unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    assert list((tmp_path / "unet").glob("*.bin"))
    with pytest.raises(DiffalignError, match=r"\.bin, \.pt\) are never loaded.*use_safetensors=False"):
        Policy.from_pretrained(str(tmp_path), steps=2)


def test_prompts_are_checked_by_the_longest_of_them() -> None:
    policy = make()
    policy.check_prompts(["cat", "a red fox in the snow"])
    assert list(policy.encoder.known) == ["a red fox in the snow"]
    with pytest.raises(DiffalignError, match="this model takes 16"):
        policy.check_prompts(["a small blue house on a hill at night", "a " * 20, "cat"])


def test_guidance_that_needs_a_negative_prompt_says_so() -> None:
    family = FAMILIES["Flux"]
    pipe = family.make()
    pipe.transformer.register_to_config(guidance_embeds=False)
    call = {k: v for k, v in family.call.items() if k != "guidance_scale"}
    with pytest.raises(DiffalignError, match="guides by true_cfg_scale only with a negative_prompt"):
        make(pipe, guidance_scale=3.0, call=call)


def test_a_pipeline_without_a_denoiser_is_refused() -> None:
    pipe: StableDiffusionPipeline = stable_diffusion()
    pipe.unet = None
    with pytest.raises(DiffalignError, match="StableDiffusionPipeline has no denoiser"):
        make(pipe)


@pytest.mark.slow
def test_compiled_denoiser_gives_the_same() -> None:
    plain, policy = make(), make(compile=True)
    policy.load_adapter_state(plain.adapter_state())
    assert torch.allclose(output(policy), output(plain), atol=1e-4)
    with policy.using("reference"), plain.using("reference"):
        assert torch.allclose(output(policy), output(plain), atol=1e-4)


def test_old_prompts_are_forgotten_and_encoded_again(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffalign.models.encoder.REMEMBERED", 2)
    first = policy.encode(["cat"]).state_dict()
    policy.encode(["two dogs", "a red fox in the snow"])
    assert list(policy.encoder.known) == ["two dogs", "a red fox in the snow"]
    again = policy.encode(["cat"]).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
