"""From a validated config to a search that can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffalign import __version__, prompts, registry
from diffalign.folders.runfolder import RunFolder
from diffalign.folders.searchfolder import SearchFolder
from diffalign.launching import build
from diffalign.launching.launch import load_trained, own_settings
from diffalign.launching.seek import Seeker
from diffalign.models import weights
from diffalign.policy import LoraSpec, Policy
from diffalign.rewarding.compose import Base
from diffalign.run import Batching, Run
from diffalign.search import Search
from diffalign.settings.config import RunConfig
from diffalign.settings.named import make
from diffalign.settings.searchconfig import SearchConfig
from diffalign.training.calibrate import Calibrator


@contextmanager
def seeker(config: SearchConfig, folder: SearchFolder) -> Iterator[Seeker]:
    """Everything a search needs, refused before anything is computed where it cannot work."""
    here = build.accelerator(config)
    method: Search = make(config.search, registry.search)
    texts = wanted(config)
    with ExitStack() as undo:
        reward, watched = build.composition(config, undo), build.rewards(config.eval_rewards, undo)
        policy = adapted(config, here)
        policy.check_prompts(texts)
        build.refuse_videos(policy, {**reward.rewards, **watched})
        rule = build.rule(config, policy) if config.rule else method.default_rule(policy)
        decoder = build.model(config.decode_with, here, lora=False) if config.decode_with else None
        made = Seeker(
            method, policy, rule, reward, texts, folder, watched, decoder, config.seed, config.prompts_at_once,
            config.sample_batch, here.process_index, here.num_processes, about(config),
        )  # fmt: skip
        made.check()
        reward.base = calibrated(config, made, here)
        yield made


def wanted(config: SearchConfig) -> list[str]:
    """The prompts that are searched for, from their source or as they are written."""
    if isinstance(config.prompts, str):
        return prompts.load(config.prompts, config.prompts_limit)
    return [text.strip() for text in config.prompts[: config.prompts_limit]]


def about(config: SearchConfig) -> dict[str, Any]:
    """What every result tells of its search: the version, and all that decides what is found."""
    told = config.identity().items()
    return {"diffalign": __version__, **{k: v for k, v in told if not k.startswith("prompts")}}


def adapted(config: SearchConfig, here: Accelerator) -> Policy:
    """The model with its adapter: that of a run's folder, a folder with LoRA weights, or none."""
    if config.adapter is None:
        return build.model(config, here, lora=False)
    path = Path(config.adapter)
    if not (path / "config.yaml").is_file():
        policy = build.model(config, here, lora=weights.lora_of(path))
        policy.load(path)
        return policy
    run = RunFolder.open(path)
    policy = build.model(config, here, lora=_spec(own_settings(run)))
    load_trained(policy, run)
    return policy


def _spec(trained: RunConfig) -> LoraSpec | None:
    return LoraSpec(**trained.lora.model_dump()) if trained.lora else None


def calibrated(
    config: SearchConfig, made: Seeker, here: Accelerator
) -> Callable[[Sequence[str]], Base] | None:
    """What the untuned model scores, measured now for all prompts, as processes do not meet later."""
    composite = made.reward
    if not (composite.wants_statistics or composite.combiner.levels):
        return None
    batching = Batching(prompts_per_round=1, images_per_prompt=1, sample_batch=config.sample_batch)
    run = Run(made.policy, made.rule, composite, made.prompts, batching, seed=config.seed, accelerator=here)
    measured = Calibrator(run, made.folder, config.calibration_pictures, config.identity())(made.prompts)
    rows = {prompt: row for row, prompt in enumerate(made.prompts)}

    def base(texts: Sequence[str]) -> Base:
        chosen = torch.tensor([rows[text] for text in texts])
        levels = {label: values[chosen] for label, values in measured.levels.items()}
        return Base(measured.mean, measured.std, levels)

    return base
