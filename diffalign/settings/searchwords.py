"""What a command line asks `diffalign search` for, as a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffalign import registry
from diffalign.errors import DiffalignError, unknown
from diffalign.settings import searchconfig
from diffalign.settings.configfile import Origins, Raw, override, read
from diffalign.settings.searchconfig import SearchConfig

PLAIN = {"steps": 20}
"""What is assumed without a config; what a method says in `plain` goes before it."""


@dataclass(frozen=True)
class Asked:
    """METHOD and CONFIG where given, key=value pairs, and options by the config's keys."""

    method: str | None = None
    config: str | None = None
    overrides: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, words: Sequence[str], options: Mapping[str, Any]) -> Asked:
        """METHOD, CONFIG and key=value in any order but that one."""
        names = [word for word in words if "=" not in word]
        overrides = [word for word in words if "=" in word]
        match names:
            case []:
                return cls(None, None, overrides, options)
            case [config] if config in registry.configs() or config.endswith((".yaml", ".yml")):
                return cls(None, config, overrides, options)
            case [method]:
                return cls(_known(method), None, overrides, options)
            case [method, config]:
                return cls(_known(method), config, overrides, options)
        raise DiffalignError(f"search takes a METHOD and a CONFIG, and got {len(names)}: {', '.join(names)}.")

    def settings(self) -> SearchConfig:
        """The config of a new search; all that is wrong with it in one error."""
        if not (self.method or self.config):
            raise DiffalignError(
                "say how to search: `diffalign search METHOD CONFIG` (see `diffalign list`), or "
                "`diffalign search METHOD --model MODEL --reward REWARD --prompt TEXT`."
            )
        raw, origins = read(self.config, registry.configs()) if self.config else (self._plain(), {})
        if self.method and _name(raw.get("search")) != self.method:
            raw["search"], origins["search"] = self.method, "the command line"
        for key, value in self.options.items():
            _put(raw, origins, key, value)
        source = self.config or "the command line"
        return searchconfig.validate(*override(raw, origins, self.overrides), source)

    def _plain(self) -> Raw:
        return {**PLAIN, **getattr(registry.search(self.method or ""), "plain", {})}


def _known(method: str) -> str:
    if ":" not in method and method not in registry.searches():
        raise unknown("search method", method, [*registry.searches(), "module:Class", "file.py:Class"])
    return method


def _name(search: Any) -> Any:
    return search.get("name") if isinstance(search, dict) else search


def _put(raw: Raw, origins: Origins, key: str, value: Any) -> None:
    """Let an option take the place of a config's key; prompts are not replaced, but asked about."""
    if key == "prompts" and raw.get(key) is not None:
        raise DiffalignError(
            f"--prompt and --prompts are given, and so is `prompts` ({origins.get(key)}); leave one of them out "
            f"(prompts=FILE on the command line takes the config's place)."
        )
    for below in [name for name in origins if f"{name}.".startswith(f"{key}.")]:
        del origins[below]
    raw[key], origins[key] = value, "the command line"
