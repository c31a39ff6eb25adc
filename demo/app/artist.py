"""A model that draws for the app: one policy, used by one thread at a time, with the weights it was given last.

Dimensions: P pictures, or pairs of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.folders.runfolder import RunFolder
from diffalign.launching import build
from diffalign.launching.launch import load_trained, own_settings
from diffalign.mixed import Mixed
from diffalign.models.weights import lora_of
from diffalign.policy import Policy
from diffalign.seeds import derive
from diffalign.settings import config
from diffalign.settings.config import RunConfig
from diffalign.steps import StepRule, stochastic
from diffalign.trajectory import Trajectory
from diffalign.walk import decode, rollout
from diffalign_demo.app.choosing import apart
from diffalign_demo.app.options import Options
from diffalign_demo.app.turns import Turns

BATCH = 8
"""Pictures drawn at once."""


class Artist:
    """`name` is what votes remember: the model, and which weights were trained on top of it."""

    def __init__(self, title: str, policy: Policy, rule: StepRule) -> None:
        self.title, self.policy, self.rule, self.turns = title, policy, rule, Turns()
        self.trained = policy.version
        _refuse_videos(title, policy)

    @property
    def name(self) -> str:
        """Such as "emoji", or "emoji+1a2b3c4d5e6f" where it is tuned."""
        return f"{self.title}+{self.trained}" if self.trained else self.title

    @property
    def trainable(self) -> bool:
        """Whether its steps have log-probabilities, so that votes on its pictures can train it."""
        return bool(len(stochastic(self.rule, self.policy.grid)))

    def load(self, run: RunFolder, lora: Path | None = None) -> None:
        """Go on with the weights of a training run, or with a LoRA of it."""
        with self.turns:
            if lora:
                self.policy.load(lora)
            else:
                load_trained(self.policy, run)
            self.trained = self.policy.version

    def pairs(
        self, prompts: Sequence[str], seeds: Sequence[int], candidates: int = 2
    ) -> tuple[str, Tensor, Trajectory]:
        """(name, pictures (2P, 3, H, W), trajectories (2P)): of a prompt's candidates, the two most different.

        They begin at one x_T where noise follows.
        """
        each = [(n, c) for n in range(len(prompts)) for c in range(candidates)]
        own = [derive(seeds[n], "steps", c) for n, c in each]
        shared = [derive(seeds[n], "noise", 0 if self.trainable else c) for n, c in each]
        texts, group = [prompts[n] for n, _ in each], [n for n, _ in each]
        with self.turns, torch.no_grad():
            drawn = rollout(self.policy, self.rule, texts, own, noise_seeds=shared, group=group, batch=BATCH)
            batch = drawn[apart(drawn.final, candidates).cpu()]
            return self.name, self._decoded(batch.final), batch

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], w: float = 1.0) -> tuple[str, Tensor]:
        """(name, pictures (P, 3, H, W)) at strength w of what was trained: 0 is the base model."""
        own, shared = ([derive(seed, kind) for seed in seeds] for kind in ("steps", "noise"))
        with self.turns, torch.no_grad():
            mixed = Mixed(self.policy, w) if self.trained and w not in (0, 1) else self.policy
            with self.policy.using("reference") if w == 0 and self.trained else nullcontext():
                batch = rollout(
                    mixed, self.rule, prompts, own, noise_seeds=shared, group=range(len(prompts)), batch=BATCH
                )
            return self.title if w == 0 else self.name, self._decoded(batch.final)

    def _decoded(self, latents: Tensor) -> Tensor:
        return decode(self.policy, latents, BATCH).cpu().clamp(0, 1)


def engage(options: Options, what: str | None = None) -> Artist:
    """The artist of the app's own model, of another model, of a run's folder or of a folder with LoRA weights."""
    folder = Path(what or "")
    if what and (folder / "config.yaml").is_file():
        run = RunFolder.open(folder)
        settings = own_settings(run)
        artist = _artist(settings, settings.model, build.policy(settings, build.accelerator(settings)))
        artist.load(run)
        return artist
    if what and folder.is_dir() and not (folder / "model_index.json").is_file():
        settings = config.load(options.config, options.words())
        tuned = build.model(settings, build.accelerator(settings), lora_of(folder))
        tuned.load(folder)
        return _artist(settings, settings.model, tuned)
    settings = config.load(options.config, options.words(what))
    return _artist(settings, settings.model, build.policy(settings, build.accelerator(settings)))


def _artist(settings: RunConfig, model: str, policy: Policy) -> Artist:
    return Artist(Path(model).name, policy, build.rule(settings, policy))


@torch.no_grad()
def _refuse_videos(title: str, policy: Policy) -> None:
    if policy.decode(policy.noise([0])).ndim != 4:
        raise DiffalignError(
            f"{title} makes videos, and the app compares pictures; give a model of pictures."
        )
