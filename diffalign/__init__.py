"""Aligns diffusion and flow models with rewards and with people."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Policy": "policy",
    "Conditioning": "policy",
    "LoraSpec": "policy",
    "Grid": "grid",
    "DDIM": "steps",
    "FlowSDE": "steps",
    "ODE": "steps",
    "Trajectory": "trajectory",
    "rollout": "walk",
    "rescore": "walk",
    "Reward": "reward",
    "Scores": "reward",
    "RunConfig": "settings.config",
    "RunFolder": "folders.runfolder",
    "Trainer": "training.trainer",
    "BestOfN": "search.best_of_n",
    "ReNO": "search.reno",
    "FK": "search.fk",
    "DTS": "search.dts",
    "RLGuidance": "search.rl_guidance",
    "NRG": "search.nrg",
    "ZORankSGD": "search.zo_rank_sgd",
    "Search": "search",
    "DiffalignError": "errors",
    "RunError": "errors",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: `import diffalign` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'diffalign' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffalign.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
