"""The keys that every config shares: a model, how it is stepped, and the rewards it is judged by."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from diffalign import registry
from diffalign.bounds import Count, NotNegative, Positive, Seed
from diffalign.rewarding.compose import Normalize
from diffalign.settings.configfile import Origins, Raw, explain
from diffalign.settings.named import Named, Strict, fits, trained_reward
from diffalign.settings.rewardforms import labelled
from diffalign.settings.rewardspec import RewardSpec, all_fit, apart, combinable

C = TypeVar("C", bound="SharedConfig")


class ModelConfig(Strict):
    """A model and how it is stepped."""

    model: str
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    quantize: str | None = None
    parts: dict[str, str] = Field(default_factory=dict)
    call: dict[str, Any] = Field(default_factory=dict)
    negative_prompt: str | None = None
    guidance_scale: NotNegative | None = None
    steps: Positive
    timesteps: list[Count] | None = None
    rule: Named | None = None
    predict: Literal["auto", "replay", "template"] = "auto"
    attention: str = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    offload: bool = False

    @field_validator("rule")
    @classmethod
    def _rule(cls, value: Named | None) -> Named | None:
        return value and fits(value, registry.rule)

    @field_validator("call")
    @classmethod
    def _has_no_keys_of_its_own(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in sorted({"guidance_scale", "negative_prompt"} & value.keys()):
            raise ValueError(
                f"holds {name}, which is a key of its own; write {name}: {value[name]!r} beside `call`"
            )
        return value


class SharedConfig(ModelConfig):
    """A model, the rewards that it follows, and those that only judge."""

    rewards: dict[str, RewardSpec] = Field(min_length=1)
    calibrate: bool = False
    calibration_pictures: Annotated[int, Field(ge=2)] = 64
    normalize: Normalize = "none"
    combine: Named = Named(name="sum")
    eval_rewards: dict[str, RewardSpec]
    sample_batch: Positive = 16
    seed: Seed = 0
    out: str | None = None

    @field_validator("rewards", "eval_rewards", mode="before")
    @classmethod
    def _any_form(cls, value: Any) -> Any:
        return labelled(value)

    @field_validator("rewards")
    @classmethod
    def _rewards(cls, value: dict[str, RewardSpec]) -> dict[str, RewardSpec]:
        return all_fit(value, trained_reward)

    @field_validator("eval_rewards")
    @classmethod
    def _judged_by_another(cls, value: dict[str, RewardSpec], info: ValidationInfo) -> dict[str, RewardSpec]:
        return apart(all_fit(value, registry.reward_maker), info.data.get("rewards", {}))

    @field_validator("combine")
    @classmethod
    def _combine(cls, value: Named, info: ValidationInfo) -> Named:
        return combinable(fits(value, registry.combiner), info.data)

    def resolved(self) -> dict[str, Any]:
        """All keys with their values, as config.yaml holds them."""
        return self.model_dump(mode="json")

    @property
    def free(self) -> frozenset[str]:
        """The keys that may change when a folder is gone on with: they do not change what comes out."""
        return frozenset({"out"})

    def identity(self) -> dict[str, Any]:
        """The other keys, which what is in the folder must share with what goes on from it."""
        placeless = {key: _placeless(getattr(self, key)) for key in ("rewards", "eval_rewards")}
        return {key: value for key, value in (self.resolved() | placeless).items() if key not in self.free}


def validated(kind: type[C], raw: Raw, origins: Origins, source: str) -> C:
    """A config of this kind from plain values; `origins` says where each key was written."""
    try:
        return kind.model_validate(raw)
    except ValueError as error:
        raise explain(error, kind, origins, source) from None


def _placeless(rewards: dict[str, RewardSpec]) -> dict[str, Any]:
    """The rewards without where they run and how they are asked, which may change when a run goes on."""
    return {
        label: {"weight": spec.weight}
        if spec.url
        else spec.model_dump(mode="json", exclude={"url", "python"})
        for label, spec in rewards.items()
    }
