"""The configuration of a run: flat YAML plus `key=value` overrides, checked whole before anything runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from diffalign import registry
from diffalign.bounds import Above0, Count, Decay, NotNegative, Positive
from diffalign.errors import DiffalignError
from diffalign.settings.configfile import Origins, Raw, override, read
from diffalign.settings.named import Named, Strict, make, makes
from diffalign.settings.rewardspec import RewardSpec
from diffalign.settings.sharedconfig import SharedConfig, validated


class LoraConfig(Strict):
    """LoRA of `rank`; the update is scaled by alpha / rank (null: alpha = rank).

    targets: layer names, "attention", "attention+conv" or a regular expression; null: attention.
    """

    rank: Positive = 16
    alpha: Above0 | None = None
    targets: list[str] | str | None = None


class RunConfig(SharedConfig):
    """All keys of a run; configs/*.yaml shows them with their units."""

    # what is trained, by what, from what
    lora: LoraConfig | None = LoraConfig()
    algorithm: Named
    rewards: dict[str, RewardSpec] = Field(default_factory=dict)
    preferences: str | None = None
    pictures: str | None = None
    voters: dict[str, NotNegative] = Field(default_factory=dict)
    wait: bool = False
    prompts: str
    eval_rewards: dict[str, RewardSpec] = Field(min_length=1)
    heldout_prompts: str
    heldout_limit: Positive = 64
    heldout_seed: int = 1_000_003
    diversity: str | None = "emoji_clip"

    # how much of it
    rounds: Positive
    prompts_per_round: Positive
    images_per_prompt: Positive
    updates_per_round: Positive = 1
    micro_batch: Positive = 16

    # the optimizer
    lr: Above0
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_updates: Count = 0
    weight_decay: NotNegative = 1e-4
    adam_beta1: Decay = 0.9
    adam_beta2: Decay = 0.999
    adam_eps: Above0 = 1e-8
    max_grad_norm: Above0 = 1.0
    ema_decay: Decay | None = None

    # looking, stopping, saving
    eval_every: Positive = 5
    keep_best: bool = True
    max_kl: Above0 | None = None
    max_heldout_drop: Above0 | None = None
    on_limit: Literal["stop", "lower_lr"] = "stop"
    minutes: Above0 | None = None
    checkpoint_every: Positive = 5
    keep_checkpoints: Positive = 2
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default=["tensorboard"])

    @field_validator("algorithm")
    @classmethod
    def _algorithm(cls, value: Named) -> Named:
        return makes(value, registry.algorithm)

    @field_validator("preferences")
    @classmethod
    def _people_or_rewards(cls, value: str | None, info: ValidationInfo) -> str | None:
        rewards, chosen = info.data.get("rewards"), info.data.get("algorithm")
        if value is None and rewards == {}:
            raise ValueError(
                "is not given, and neither are `rewards`: say what to learn from, votes or rewards"
            )
        if value is not None and rewards:
            raise ValueError(
                "stands in place of `rewards`; put those under `eval_rewards`, where they only judge"
            )
        if value is not None and chosen and chosen.name != "d3po":
            raise ValueError(f"holds people's votes, which d3po learns from, and {chosen.name} does not")
        return value

    @field_validator("voters", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        named = [value] if isinstance(value, str) else value
        return dict.fromkeys(named, 1.0) if isinstance(named, list) else named

    @field_validator("pictures", "voters", "wait")
    @classmethod
    def _of_votes(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("preferences", "") is None:
            raise ValueError("says how votes are used, and there are none: give `preferences`")
        return value

    @field_validator("wait")
    @classmethod
    def _counts_alike(cls, value: bool, info: ValidationInfo) -> bool:
        if value and len(set(info.data.get("voters", {}).values())) > 1:
            raise ValueError("takes every vote of a round as it comes; leave the weights out of `voters`")
        return value

    @field_validator("diversity")
    @classmethod
    def _embeds(cls, value: str | None) -> str | None:
        try:
            embeds = value is None or hasattr(registry.reward_maker(value), "embed")
        except DiffalignError as error:
            raise ValueError(str(error)) from error
        if not embeds:
            raise ValueError(
                f"is {value}, which has no method embed(images); take emoji_clip, a reward of yours that has one, "
                "or null to leave diversity out"
            )
        return value

    @field_validator("trackers")
    @classmethod
    def _installed(cls, value: list[str]) -> list[str]:
        if missing := [name for name in value if importlib.util.find_spec(name) is None]:
            raise ValueError(
                f"need packages: pip install {' '.join(missing)}, or leave them out: trackers=[]"
            )
        return value

    @field_validator("images_per_prompt")
    @classmethod
    def _enough_pictures(cls, value: int, info: ValidationInfo) -> int:
        if chosen := info.data.get("algorithm"):
            needed = getattr(make(chosen, registry.algorithm), "min_images_per_prompt", 1)
            if value < needed:
                raise ValueError(
                    f"is {value}, but {chosen.name} compares pictures of one prompt; make it {needed} or more"
                )
        if value != 2 and info.data.get("preferences"):
            raise ValueError(f"is {value}, but a vote is about a pair of pictures; make it 2")
        if value < 2 and info.data.get("normalize", "none") != "none":
            raise ValueError("is 1, but `normalize` compares pictures of one prompt; make it 2 or more")
        return value

    @field_validator("warmup_updates")
    @classmethod
    def _ends(cls, value: int, info: ValidationInfo) -> int:
        chosen, given = info.data.get("algorithm"), info.data
        if chosen and {"rounds", "updates_per_round"} <= given.keys():
            epochs = getattr(make(chosen, registry.algorithm), "epochs", 1)
            updates = given["rounds"] * given["updates_per_round"] * epochs
            if value >= updates:
                raise ValueError(
                    f"is {value}, but the run has {updates} update(s) in all; make it less than that"
                )
        return value

    @field_validator("micro_batch")
    @classmethod
    def _holds_a_prompt(cls, value: int, info: ValidationInfo) -> int:
        chosen, images = info.data.get("algorithm"), info.data.get("images_per_prompt")
        if chosen and images:
            together = getattr(make(chosen, registry.algorithm), "together", None)
            if together and value < (needed := together(images)):
                raise ValueError(
                    f"is {value}, but {chosen.name} passes {needed} pictures of a prompt through the denoiser at "
                    f"once; make it {needed} or more, or let algorithm.keep choose fewer of them"
                )
        return value

    @field_validator("updates_per_round")
    @classmethod
    def _divides(cls, value: int, info: ValidationInfo) -> int:
        prompts, processes = info.data.get("prompts_per_round"), int(os.environ.get("WORLD_SIZE", "1"))
        if prompts and prompts % (value * processes):
            raise ValueError(
                f"prompts_per_round = {prompts} does not divide into updates_per_round = {value} x "
                f"{processes} process(es); make prompts_per_round a multiple of {value * processes}"
            )
        return value

    @property
    def free(self) -> frozenset[str]:
        """FREE_ON_RESUME, and the length of a run whose rate does not depend on it."""
        return FREE_ON_RESUME | ({"rounds"} if self.lr_schedule == "constant" else set())


FREE_ON_RESUME = frozenset(
    {"out", "minutes", "trackers", "checkpoint_every", "keep_checkpoints", "attention", "compile"}
)
"""What may change between a checkpoint and the run that goes on from it: none of it moves the weights."""


def load(source: str, overrides: Iterable[str] = ()) -> RunConfig:
    """A packaged config by name or a YAML file, with `key=value` overrides; all errors at once."""
    return validate(*read(source, registry.configs(), overrides), source)


def load_raw(raw: Raw, overrides: Iterable[str] = ()) -> RunConfig:
    """A config from plain values, with `key=value` overrides."""
    return validate(*override(raw, {}, overrides), "the command line")


def validate(raw: Raw, origins: Origins | None = None, source: str = "config") -> RunConfig:
    """A RunConfig from plain values; `origins` says where each key was written."""
    if "search" in raw:
        raise DiffalignError(f"{source} is the config of a search: `diffalign search {source}` runs it.")
    return validated(RunConfig, raw, origins or {}, source)
