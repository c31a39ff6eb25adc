"""The configuration of a search: that of a model and its rewards, a method, and the prompts."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field, field_validator

from diffalign import registry
from diffalign.bounds import Positive
from diffalign.errors import DiffalignError
from diffalign.rewarding.compose import Normalize
from diffalign.settings.configfile import Origins, Raw, override, read
from diffalign.settings.named import Named, fits
from diffalign.settings.rewardspec import RewardSpec
from diffalign.settings.sharedconfig import ModelConfig, SharedConfig, validated


class SearchConfig(SharedConfig):
    """All keys of a search; docs/config.md explains them."""

    search: Named
    prompts: str | list[str]
    prompts_limit: Positive | None = None
    eval_rewards: dict[str, RewardSpec] = Field(default_factory=dict)
    prompts_at_once: Positive = 16
    adapter: str | None = None
    decode_with: ModelConfig | None = None

    @field_validator("search")
    @classmethod
    def _search(cls, value: Named) -> Named:
        return fits(value, registry.search)

    @field_validator("prompts")
    @classmethod
    def _some(cls, value: str | list[str]) -> str | list[str]:
        if not value or not all(text.strip() for text in value):
            raise ValueError(f"is {value!r}; give a source of prompts, or a list of texts that are not empty")
        return value

    @field_validator("normalize")
    @classmethod
    def _nothing_to_normalize(cls, value: Normalize) -> Normalize:
        if value != "none":
            raise ValueError(
                f"is {value}, but a search has no group of pictures to normalise within; `calibrate: true` brings "
                "rewards to one scale"
            )
        return value

    @property
    def free(self) -> frozenset[str]:
        """See FREE_ON_RESUME."""
        return FREE_ON_RESUME


FREE_ON_RESUME = frozenset(
    {"out", "prompts_at_once", "sample_batch", "gradient_checkpointing", "attention", "compile", "offload"}
)
"""What may change when a search is gone on with: how much memory and time it takes, not what it finds."""


def load(source: str, overrides: Iterable[str] = ()) -> SearchConfig:
    """A packaged config by name or a YAML file, with `key=value` overrides; all errors at once."""
    return validate(*read(source, registry.configs(), overrides), source)


def load_raw(raw: Raw, overrides: Iterable[str] = ()) -> SearchConfig:
    """A config from plain values, with `key=value` overrides."""
    return validate(*override(raw, {}, overrides), "the command line")


def validate(raw: Raw, origins: Origins | None = None, source: str = "config") -> SearchConfig:
    """A SearchConfig from plain values; `origins` says where each key was written."""
    if "algorithm" in raw:
        raise DiffalignError(
            f"{source} is the config of a training run: `diffalign train {source}` runs it. Once it has run, "
            "`diffalign search METHOD CONFIG --adapter FOLDER` searches with what it trained."
        )
    return validated(SearchConfig, raw, origins or {}, source)
