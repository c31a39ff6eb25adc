"""What rewards of a whole set of pictures share: features of any encoder, and statistics that add up.

N pictures, E features, all in float64. `statistics(features)` of batches are added with `+`, in any order;
`value(statistics)` is the score of all of them, and `score_set` does both in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from diffalign.reward import DiffalignError, Reward, capability, once
from diffalign_rewards import _references
from diffalign_rewards._weights import reading

AT_ONCE = 64
"""Pictures the encoder sees in one pass."""


class Statistics:
    """What is kept of a set: tensors, the fields of a dataclass."""

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(**{name: value.to(device) for name, value in self.tensors().items()})


@dataclass(frozen=True)
class Rows(Statistics):
    """The features (N, E) themselves, where no fixed number of sums says all."""

    features: Tensor

    def __add__(self, other: Rows) -> Rows:
        return Rows(torch.cat([self.features, other.features]))


@dataclass(frozen=True)
class Moments(Statistics):
    """count (), sum of the features (E,) and of their outer products (E, E)."""

    count: Tensor
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of features (N, E)."""
        return cls(features.new_tensor(len(features)), features.sum(0), features.T @ features)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.count - other.count, self.total - other.total, self.outer - other.outer)

    @property
    def mean(self) -> Tensor:
        """(E,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(E, E), unbiased."""
        return (self.outer - torch.outer(self.total, self.mean)) / (self.count - 1)


class PictureSet:
    """A reward of a set over an encoder: any reward with `embed(images) -> (N, E)`."""

    name: str
    fewest = 2

    def __init__(self, encoder: Reward) -> None:
        if not hasattr(encoder, "embed"):
            raise DiffalignError(
                f"{self.name} needs an encoder with `embed(images) -> features`, such as clip or emoji_clip; "
                f"{type(encoder).__name__} has none."
            )
        self.encoder: Any = encoder
        self.differentiable = capability(encoder, "differentiable")

    def score_set(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """The score () of pictures (N, 3, H, W) in [0, 1] together; prompts do not matter."""
        if images.ndim != 4 or len(images) < self.fewest:
            raise DiffalignError(
                f"{self.name} judges sets of at least {self.fewest} pictures (N, 3, H, W); "
                f"got shape {tuple(images.shape)}."
            )
        return self.value(self.statistics(self.features(images)))

    def features(self, images: Tensor) -> Tensor:
        """Features (N, E) of pictures (N, 3, H, W), in float64."""
        some = once(("portions", AT_ONCE), images, lambda: torch.split(images, AT_ONCE))
        features = torch.cat([self.encoder.embed(each) for each in some])
        return (features.cpu() if features.device.type == "mps" else features).double()

    def statistics(self, features: Tensor) -> Any:
        """What is kept of features (N, E); add it to that of others."""
        raise NotImplementedError

    def value(self, statistics: Any) -> Tensor:
        """The score () of everything that was added up."""
        raise NotImplementedError


class ComparedSet(PictureSet):
    """A set that is compared with reference pictures, which are looked at when they are first needed.

    reference: a folder or a parquet of pictures, "emoji" (the packaged pictures), or a .safetensors that
    `save_reference` wrote.
    """

    needs_reference = True
    keeps: type[Statistics]

    def __init__(self, encoder: Reward, reference: str) -> None:
        super().__init__(encoder)
        self.paths = _references.find(self.name, reference)
        self._known: Any = None

    def reference(self, device: torch.device) -> Any:
        """The statistics of the reference pictures, measured by an encoder on this device."""
        if self._known is None:
            (first, *_) = self.paths
            self._known = self._saved(first, device) if first.suffix == ".safetensors" else self._seen(device)
        return self._known.to(device)

    @torch.no_grad()
    def _seen(self, device: torch.device) -> Any:
        first, *rest = [
            self.statistics(self.features(some.to(device))).to(torch.device("cpu"))
            for some in _references.batches(self.paths)
        ]
        return sum(rest, first)

    def _saved(self, path: Path, device: torch.device) -> Any:
        with reading(path, f"statistics that {self.name}'s save_reference wrote"):
            found = load_file(path)
            probe, known = found.pop("probe"), self.keeps(**found)
        now = self._probe(device)
        if probe.shape != now.shape or cosine_similarity(probe, now, dim=0) < 0.999:
            raise DiffalignError(
                f"{path} was measured with another encoder than {type(self.encoder).__name__} with its present "
                "weights; name the same encoder, or the pictures themselves."
            )
        return known

    def save_reference(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        """Write the statistics of the reference pictures, to be named instead of the pictures."""
        device = torch.device(device)
        save_file({**self.reference(device).tensors(), "probe": self._probe(device)}, path)

    @torch.no_grad()
    def _probe(self, device: torch.device) -> Tensor:
        """Features (E,) of a picture of all colours, by which an encoder is recognised."""
        ramp = torch.linspace(0, 1, 64, device=device)
        colours = torch.stack(
            [ramp.expand(64, 64), ramp[:, None].expand(64, 64), ramp.flip(0).expand(64, 64)]
        )
        return self.features(colours[None])[0].cpu()
