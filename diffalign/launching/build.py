"""From a validated config to a trainer: the one place where names become objects."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from diffalign import prompts, registry
from diffalign.errors import DiffalignError
from diffalign.folders.runfolder import RunFolder
from diffalign.policy import LoraSpec, Policy
from diffalign.reward import AnyReward, capability, refuse_video
from diffalign.rewarding.compose import Composite
from diffalign.rewarding.measure import close
from diffalign.run import Batching, Run
from diffalign.settings.config import RunConfig
from diffalign.settings.named import convert, make
from diffalign.settings.rewardspec import RewardSpec
from diffalign.settings.sharedconfig import ModelConfig, SharedConfig
from diffalign.steps import StepRule, default_rule, stochastic
from diffalign.training.calibrate import Calibrator
from diffalign.training.evaluate import Evaluator
from diffalign.training.optimize import Optimizer, OptimizerSettings
from diffalign.training.trainer import Schedule, Trainer

if TYPE_CHECKING:
    from diffalign.preferences import Store
    from diffalign.training.voted import Ballots

T = TypeVar("T")
PLUGINS = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def pick(kind: type[T], config: SharedConfig, **more: Any) -> T:
    """A dataclass filled from the config's keys of the same names."""
    names = {f.name for f in fields(kind)} & type(config).model_fields.keys()  # type: ignore[arg-type]
    return kind(**{name: getattr(config, name) for name in names}, **more)


def accelerator(config: SharedConfig) -> Accelerator:
    """This process, its device and its fellows."""
    refuse_plugins()
    on_cpu = not torch.accelerator.is_available()  # said outright, else accelerate ignores further processes
    try:
        return Accelerator(cpu=on_cpu, mixed_precision=config.mixed_precision)
    except (ImportError, RuntimeError, ValueError) as error:
        raise DiffalignError(
            f"accelerate does not start with mixed_precision={config.mixed_precision}: {error}"
        ) from error


def policy(config: RunConfig, accelerator: Accelerator) -> Policy:
    """The captured model with its adapter, on this process's device."""
    set_seed(config.seed)  # the adapter's initial weights, the same on every process
    return model(config, accelerator, LoraSpec(**config.lora.model_dump()) if config.lora else None)


def model(config: ModelConfig, accelerator: Accelerator, lora: LoraSpec | Literal[False] | None) -> Policy:
    """The captured model, on this process's device; with lora=False nothing of it is trained."""
    negative = {} if config.negative_prompt is None else {"negative_prompt": config.negative_prompt}
    return Policy.from_pretrained(
        config.model, revision=config.revision, variant=config.variant, dtype=config.dtype,
        quantize=config.quantize, parts=config.parts, steps=config.steps, timesteps=config.timesteps,
        guidance_scale=config.guidance_scale, call=config.call | negative,
        lora=lora, predict=config.predict, mixed_precision=config.mixed_precision,
        attention=config.attention, compile=config.compile, gradient_checkpointing=config.gradient_checkpointing,
        offload=config.offload, device=accelerator.device,
    )  # fmt: skip


def rule(config: ModelConfig, model: Policy) -> StepRule:
    """The configured step rule, or the default one of the model's kind."""
    if config.rule is None:
        return default_rule(model.grid)
    found: StepRule = make(config.rule, registry.rule)
    return found


def rewards(specs: Mapping[str, RewardSpec], undo: ExitStack) -> dict[str, AnyReward]:
    """label -> reward, here or elsewhere; `undo` lets go of those that hold a connection or a process."""
    made: dict[str, AnyReward] = {}
    for label, spec in specs.items():
        made[label] = _reward(spec)
        undo.callback(close, {label: made[label]})
    return made


def _reward(spec: RewardSpec) -> AnyReward:
    if spec.url:
        from diffalign.serving import remote

        return remote.connect(spec.url, **spec.arguments)
    if spec.python:
        from diffalign.serving import isolated

        return isolated.start(spec.python, spec.name, spec.arguments)
    made: AnyReward = registry.reward(spec.name, **convert(registry.reward_maker(spec.name), spec.arguments))
    return made


def composition(config: SharedConfig, undo: ExitStack) -> Composite:
    """The rewards that are followed, as one."""
    combiner = make(config.combine, registry.combiner)
    weights = {label: spec.weight for label, spec in config.rewards.items()}
    return Composite(rewards(config.rewards, undo), weights, combiner, config.normalize, config.calibrate)


def trainer(config: RunConfig, folder: RunFolder) -> Trainer:
    """Everything a run needs, checked before any model is loaded where possible."""
    here = accelerator(config)
    pick(Batching, config).check(here.num_processes)
    train_prompts, heldout = prompts.load(config.prompts), prompts.load(config.heldout_prompts)
    refuse_overlap(train_prompts, heldout)
    with ExitStack() as undo:
        trained, watched = composition(config, undo), rewards(config.eval_rewards, undo)
        model = policy(config, here)
        model.check_prompts([*train_prompts, *heldout[: config.heldout_limit]])
        refuse_videos(model, {**trained.rewards, **watched})
        run = assemble_run(config, model, trained, train_prompts, here)
        if config.preferences:
            run = voted(config, run, heldout[: config.heldout_limit], folder)
        trained.base = Calibrator(run, folder, config.calibration_pictures, config.identity())
        made = assemble(config, run, evaluator(config, run, heldout, watched), folder)
        undo.pop_all()
    return made


def assemble_run(
    config: RunConfig, model: Policy, trained: Composite, train_prompts: list[str], here: Accelerator
) -> Run:
    """What an algorithm is given to work with."""
    steps = rule(config, model)
    need_noise(steps, model)
    return Run(
        model, steps, trained, train_prompts, pick(Batching, config), seed=config.seed, accelerator=here
    )


def voted(config: RunConfig, run: Run, heldout: list[str], folder: RunFolder) -> Run:
    """The same run, learning from stored votes or from those that people will cast."""
    from diffalign.preferences import Store
    from diffalign.training.live import Live
    from diffalign.training.voted import Awaited, Source, Stored, Voted, fixed

    store = Store.open(str(config.preferences), pictures=config.pictures)
    counted = ballots(config, store, heldout)
    source: Source = (
        Stored(fixed(counted, folder.path / "votes.json", run.accelerator), list(counted.left_out()))
        if not config.wait
        else Awaited(Live(folder.path / "live"), counted.model, counted.pairs)
    )
    own = {f.name: getattr(run, f.name) for f in fields(run)}
    return Voted(**own, store=store, source=source)


def ballots(config: RunConfig, store: Store, heldout: Sequence[str]) -> Ballots:
    """The votes that a run learns from."""
    from diffalign.training.voted import Ballots

    return Ballots(store, Path(config.model).name, config.voters, heldout)


def assemble(config: RunConfig, run: Run, judge: Evaluator, folder: RunFolder) -> Trainer:
    """The trainer around a run."""
    method = make(config.algorithm, registry.algorithm)
    updates = config.rounds * config.updates_per_round * getattr(method, "epochs", 1)
    settings = pick(OptimizerSettings, config, updates=updates)
    return Trainer(
        run, method, Optimizer(run.policy.trainable(), settings, run.accelerator), judge,
        pick(Schedule, config), folder, identity=config.identity(),
    )  # fmt: skip


def evaluator(config: RunConfig, run: Run, heldout: list[str], watched: Mapping[str, AnyReward]) -> Evaluator:
    """Held-out evaluation with every reward, trained on or not."""
    embed = registry.reward(config.diversity).embed if config.diversity else None
    return Evaluator(run, heldout[: config.heldout_limit], watched, embed, config.heldout_seed)


@torch.no_grad()
def refuse_videos(model: Policy, every: Mapping[str, AnyReward]) -> None:
    """Say before anything is sampled that a reward of pictures cannot judge this model's videos."""
    if not all(capability(reward, "video") for reward in every.values()):
        images = model.decode(model.noise([0]))
        for label, reward in every.items():
            refuse_video(reward, images, label)


def need_noise(steps: StepRule, model: Policy) -> None:
    """Training needs steps with a log-prob; an ODE, or `quiet_last` of all steps, leaves none."""
    if not len(stochastic(steps, model.grid)):
        raise DiffalignError(
            f"no step of {steps} is stochastic on {model.grid.steps} step(s), so nothing has a log-probability. "
            "Use a rule with noise (ddim with eta > 0, flow_sde), and keep quiet_last below steps."
        )


def refuse_overlap(trained: list[str], heldout: list[str]) -> None:
    """Held-out prompts must not be trained on, or the evaluation says nothing."""
    if both := sorted(set(trained) & set(heldout)):
        raise DiffalignError(
            f"{len(both)} held-out prompt(s) are also trained on, such as {both[0]!r}. "
            "Take them out of `prompts` or of `heldout_prompts`."
        )


def refuse_plugins() -> None:
    """Plugins of accelerate would shard the weights behind our back, or be ignored by a single process."""
    for name in PLUGINS:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() not in ("", "0", "false", "no", "off"):
            raise DiffalignError(
                f"accelerate is configured for {name} (ACCELERATE_USE_{name}), which diffalign does not support "
                "yet. Choose multi-GPU (DDP) or a single process in `accelerate config`."
            )
