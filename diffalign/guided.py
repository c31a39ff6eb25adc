"""Reward guidance: the gradient of a reward of noisy latents, added to the score at every step.

Dimensions: B samples, R of them at levels where guidance acts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffalign.altered import Altered
from diffalign.errors import DiffalignError, RunError
from diffalign.models.conditioning import Conditioning
from diffalign.reward import AnyReward, NoisyReward
from diffalign.rewarding.compose import composed
from diffalign.searching.ledger import costs

if TYPE_CHECKING:
    from diffalign.policy import Policy

SIGNAL_MIN = 1e-3
"""A level with less signal than this is not guided: noise / signal, by which a reward enters, has no bound."""


class Guided(Altered):
    """The score of p(x_t) exp(w r(x_t, t)): eps - w noise grad r, whatever the denoiser predicts.

    For flows that is v - w t / (1 - t) grad r (Flow-NRG, arXiv 2501.13918). It comes after classifier-free
    guidance, and samples p exp(w r) where w r(x_t, t) = log E[exp(w r(x_0)) | x_t]. `reward` is a
    NoisyReward; rewards add up by putting one Guided around another. With decoded=True it is a reward of
    pictures, asked about the x_0 that the denoiser sees in x_t: biased, since the mean of what x_t may become
    stands for all of it, and as dear as a backward pass through denoiser and decoder.
    """

    def __init__(self, policy: Policy, reward: AnyReward, w: float, decoded: bool = False) -> None:
        super().__init__(policy)
        self.reward: Any = reward
        self.w, self.decoded = w, decoded
        (_check_pictures if decoded else _check_noisy)(reward)

    def predict(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The guided output (B, ...), float32, at latents x (B, ...) and timesteps t (B,)."""
        if not self.w:
            return self.policy.predict(x, t, cond)
        i, through = self.grid.index(t), torch.is_grad_enabled() and x.requires_grad
        rows = self._live(i).nonzero().flatten()
        leaf = x if through else x.detach().requires_grad_()
        with torch.set_grad_enabled(through or (self.decoded and len(rows) > 0)):
            output = self.policy.predict(leaf, t, cond).float()
        if not len(rows):
            return output
        with torch.enable_grad():
            value = self._value(leaf, output, i, cond, rows)
            slope = self._slope(value, leaf, through)
        output = output if through else output.detach()
        steered = self.grid.steered(output[rows], self.w * slope[rows], i[rows])
        return output.index_copy(0, rows, steered)

    def costs(self, i: Tensor) -> dict[str, Tensor]:
        """See `ledger.costs`."""
        live = self._live(i).long() if self.w else torch.zeros_like(i)
        asked = ("gradients", "reward_calls") if self.decoded else ("gradients",)
        own = costs(self.policy, i)
        return {**own, **{kind: own.get(kind, 0) + live for kind in asked}}

    def _live(self, i: Tensor) -> Tensor:
        """Where guidance acts, (B,) bool."""
        return (self.grid.signal[i.cpu()] >= SIGNAL_MIN).to(i.device)

    def _value(self, x: Tensor, output: Tensor, i: Tensor, cond: Conditioning, rows: Tensor) -> Tensor:
        """The reward (R,) of the samples in these rows."""
        x, i, prompts = x[rows], i[rows], cond[rows].prompts
        if self.decoded:
            x0 = self.grid.x0_eps(output[rows], x, i)[0]
            judge = composed(self.reward)
            pictures = self.policy.decode(x0.to(x.dtype))
            return judge.combine(judge.measure(pictures, prompts, finite=False), prompts)
        signal, noise = (level.float().to(x.device)[i] for level in (self.grid.signal, self.grid.noise))
        value: Tensor = self.reward.score_noisy(x.float(), prompts, signal, noise)
        if value.shape != (len(prompts),):
            raise RunError(
                f"the noise-aware reward returned shape {tuple(value.shape)} for {len(prompts)} latents; it must "
                f"return one score each, shape ({len(prompts)},)."
            )
        return value

    def _slope(self, value: Tensor, x: Tensor, again: bool) -> Tensor:
        """Gradient (B, ...) of the summed reward in the latents; `again`: it can be differentiated itself."""
        if not value.requires_grad:
            raise DiffalignError(
                "no gradient came back through the reward; guidance needs one in its latents."
            )
        return torch.autograd.grad(value.sum(), x, create_graph=again)[0].float()


def _check_noisy(reward: AnyReward) -> None:
    if not isinstance(reward, NoisyReward):
        raise DiffalignError(
            f"{_name(reward)} judges finished pictures, and guidance asks about noisy latents: take a noise-aware "
            "reward (one with score_noisy, such as emoji_noisy_clip), or decoded=True, which judges what the denoiser "
            "makes of them so far, and is biased."
        )


def _check_pictures(reward: AnyReward) -> None:
    if not composed(reward).differentiable:
        raise DiffalignError(
            f"{_name(reward)} is not differentiable, and guidance follows its gradient: take one that is "
            "(`diffalign reward list` says which), or a search without gradients, such as best_of_n."
        )


def _name(reward: AnyReward) -> str:
    return str(getattr(reward, "__name__", type(reward).__name__))
