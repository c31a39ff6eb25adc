"""What a rollout leaves behind: states, log-probs, rewards.

Dimensions: B samples, N steps, D numbers in one latent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffalign.credit import extremes
from diffalign.errors import DiffalignError
from diffalign.grid import Grid
from diffalign.models.conditioning import Conditioning
from diffalign.steps import RULES, StepRule, stochastic


@dataclass
class Trajectory:
    """B denoising trajectories of one policy under one rule, grid and guidance scale.

    states (B, N+1, ...) in the dtype they were rolled out in; log_probs and reference_log_probs
    (B, N) in nats, summed over D, nan where the step is deterministic; group (B,) is the
    prompt's index.
    """

    prompts: list[str]
    group: Tensor
    seeds: list[int]
    cond: Conditioning
    states: Tensor
    log_probs: Tensor
    grid: Grid
    rule: StepRule
    guidance_scale: float | None = None
    version: int = 0
    reference_log_probs: Tensor | None = None
    reference_means: Tensor | None = None
    rewards: dict[str, Tensor] = field(default_factory=dict)
    advantages: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    @property
    def dim(self) -> int:
        """D."""
        return self.states[0, 0].numel()

    @property
    def steps(self) -> int:
        """N."""
        return self.log_probs.shape[1]

    @property
    def live(self) -> Tensor:
        """Indices of the steps that are stochastic, and so have a log-prob."""
        return stochastic(self.rule, self.grid)

    @property
    def final(self) -> Tensor:
        """The sampled latents (B, ...)."""
        return self.states[:, -1]

    @property
    def total(self) -> Tensor:
        """The trained reward of each sample, (B,)."""
        return self.rewards["total"]

    def __getitem__(self, rows: Tensor | Sequence[int]) -> Trajectory:
        """The trajectories of these rows."""
        rows = torch.as_tensor(rows, dtype=torch.long)
        changed: dict[str, Any] = {
            name: value[rows.to(value.device)]
            for name, value in ((f.name, getattr(self, f.name)) for f in fields(self))
            if isinstance(value, Tensor)
        }
        listed = rows.tolist()
        changed["prompts"] = [self.prompts[r] for r in listed]
        changed["seeds"] = [self.seeds[r] for r in listed]
        changed["cond"] = self.cond[rows]
        changed["rewards"] = {k: v[rows.to(v.device)] for k, v in self.rewards.items()}
        return replace(self, **changed)

    @classmethod
    def cat(cls, parts: Sequence[Trajectory]) -> Trajectory:
        """One batch after the other, groups as each part numbers them; raises where the parts are of other runs."""
        first = parts[0]
        for part in parts[1:]:
            _agree(_common(first), _common(part))
        joined: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts]) for n in _tensors(first)}
        return replace(
            first,
            prompts=[prompt for part in parts for prompt in part.prompts],
            seeds=[seed for part in parts for seed in part.seeds],
            cond=Conditioning.cat([part.cond for part in parts]),
            rewards={name: torch.cat([part.rewards[name] for part in parts]) for name in first.rewards},
            **joined,
        )

    def save(self, path: Path) -> None:
        """Write one safetensors file (with the rule and the prompts as JSON in its metadata)."""
        name = next(name for name, rule in RULES.items() if isinstance(self.rule, rule))
        meta = {
            "prompts": self.prompts,
            "seeds": self.seeds,
            "guidance_scale": self.guidance_scale,
            "version": self.version,
            "rule": {"name": name, **asdict(self.rule)},  # type: ignore[call-overload]
            "target": self.grid.target,
        }
        save_file(_flatten(self), path, metadata={"trajectory": json.dumps(meta)})

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """Read what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "trajectory" not in metadata:
                raise DiffalignError(f"{path} is not a trajectory: it was not written by Trajectory.save.")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return _unflatten(cls, tensors, json.loads(metadata["trajectory"]))


def select(batch: Trajectory, keep: int | None) -> Trajectory:
    """The `keep` best and `keep` worst trajectories of every prompt by their total reward; None: all."""
    return batch if keep is None else batch[extremes(batch.total, batch.group, keep)]


def _tensors(trajectory: Trajectory) -> dict[str, Tensor]:
    """The fields that are tensors, (B, ...) each."""
    own = {f.name: getattr(trajectory, f.name) for f in fields(trajectory)}
    return {name: value for name, value in own.items() if isinstance(value, Tensor)}


def _common(trajectory: Trajectory) -> dict[str, Any]:
    """What all samples of one batch have in common, in words -> value."""
    grid, cond = trajectory.grid, trajectory.cond.batch
    shared = [v for leaf, v in zip(cond.layout.leaves, cond.values, strict=True) if leaf.kind == "shared"]
    return {
        "step rule": trajectory.rule,
        "grid": (grid.target, *(getattr(grid, k).tolist() for k in ("timesteps", "signal", "noise"))),
        "guidance scale": trajectory.guidance_scale,
        "version": trajectory.version,
        "latents": (tuple(trajectory.states.shape[1:]), trajectory.states.dtype),
        "parts": (*_tensors(trajectory), *trajectory.rewards),
        "conditioning": [v.tolist() if isinstance(v, Tensor) else v for v in shared],
    }


def _agree(first: dict[str, Any], other: dict[str, Any]) -> None:
    for what, value in first.items():
        if value != other[what]:
            raise DiffalignError(
                f"these trajectories are of different runs: their {what} is {value} here and {other[what]} there. "
                "Join those that agree."
            )


def _flatten(trajectory: Trajectory) -> dict[str, Tensor]:
    named = _tensors(trajectory)
    named |= {f"rewards.{k}": v for k, v in trajectory.rewards.items()}
    named |= {f"cond.{k}": v for k, v in trajectory.cond.state_dict().items()}
    named |= {f"grid.{k}": getattr(trajectory.grid, k) for k in ("timesteps", "signal", "noise")}
    return {k: v.detach().cpu().contiguous() for k, v in named.items()}


def _unflatten(cls: type[Trajectory], tensors: dict[str, Tensor], meta: dict[str, Any]) -> Trajectory:
    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    rule = meta["rule"]
    return cls(
        prompts=meta["prompts"],
        seeds=meta["seeds"],
        guidance_scale=meta["guidance_scale"],
        version=meta["version"],
        rule=RULES[rule.pop("name")](**rule),
        grid=Grid(target=meta["target"], **part("grid.")),
        cond=Conditioning.from_state_dict(part("cond.")),
        rewards=part("rewards."),
        **{k: v for k, v in tensors.items() if "." not in k},
    )
