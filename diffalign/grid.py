"""The noise levels of an N-step run, for diffusion (variance preserving) and flow models alike.

Every level is x_i = signal_i * x0 + noise_i * eps. Dimensions: B samples, N steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffalign.errors import DiffalignError

Target = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
TARGETS: tuple[Target, ...] = ("epsilon", "v_prediction", "sample", "flow_prediction")


def expand(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) with the device of `like`, in float32: one number per sample."""
    return values.float().to(like.device).reshape(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class Grid:
    """N steps between N + 1 noise levels; level 0 is the initial noise, level N the sample.

    timesteps (N,) are what the denoiser is given; signal and noise (N+1,) are float64;
    target says what the denoiser's output means.
    """

    timesteps: Tensor
    signal: Tensor
    noise: Tensor
    target: Target

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise DiffalignError(f"prediction type {self.target!r} is not one of {', '.join(TARGETS)}.")
        if not len(self.signal) == len(self.noise) == len(self.timesteps) + 1:
            raise DiffalignError(
                f"a grid of {len(self.timesteps)} timesteps needs {len(self.timesteps) + 1} levels, "
                f"got {len(self.signal)} signal and {len(self.noise)} noise levels."
            )

    @classmethod
    def vp(cls, timesteps: Tensor, alphas_cumprod: Tensor, final: float, target: Target) -> Grid:
        """Variance preserving: signal = sqrt(abar), noise = sqrt(1 - abar), at integer timesteps.

        alphas_cumprod (T,) is indexed by timestep; `final` is abar after the last step (DDIM's
        `final_alpha_cumprod`).
        """
        last = torch.tensor([float(final)], dtype=torch.float64)
        abar = torch.cat([alphas_cumprod.cpu().double()[timesteps.long().cpu()], last])
        return cls(timesteps.cpu(), abar.sqrt(), (1 - abar).clamp_min(0).sqrt(), target)

    @classmethod
    def from_sigmas(cls, timesteps: Tensor, sigmas: Tensor) -> Grid:
        """Rectified flow: signal = 1 - sigma, noise = sigma; sigmas (N+1,) end at 0."""
        sigmas = sigmas.cpu().double()
        return cls(timesteps.cpu(), 1 - sigmas, sigmas, "flow_prediction")

    @property
    def steps(self) -> int:
        """N."""
        return len(self.timesteps)

    @property
    def flow(self) -> bool:
        """Whether the levels are those of a rectified flow."""
        return self.target == "flow_prediction"

    @property
    def initial(self) -> float:
        """The standard deviation of initial latents; diffusion models start from standard normal noise."""
        return float(self.noise[0]) if self.flow else 1.0

    def time(self, i: Tensor) -> Tensor:
        """(B,) timesteps for the denoiser at grid indices i (B,)."""
        return self.timesteps[i.cpu()].to(i.device)

    def index(self, t: Tensor) -> Tensor:
        """Grid indices (B,) of timesteps t (B,); raises for one that is not on the grid."""
        match = self.timesteps[None].double() == t.detach().cpu().double().reshape(-1, 1)
        if not bool(match.any(1).all()):
            raise DiffalignError(f"timesteps {t.tolist()} are not all on the grid {self.timesteps.tolist()}.")
        return match.int().argmax(1).to(t.device)

    def level(self, i: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, noise) at level i (B,), broadcastable to `like` (B, ...)."""
        i = i.cpu()
        return expand(self.signal[i], like), expand(self.noise[i], like)

    def x0_eps(self, output: Tensor, x: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        """The clean sample and the noise that the denoiser's output (B, ...) at x (B, ...) implies."""
        a, s = self.level(i, x)
        output, x = output.float(), x.float()
        match self.target:
            case "epsilon":
                return (x - s * output) / a, output
            case "v_prediction":
                return a * x - s * output, a * output + s * x
            case "sample":
                return output, (x - a * output) / s
            case "flow_prediction":
                return x - s * output, x + a * output

    def steered(self, output: Tensor, slope: Tensor, i: Tensor) -> Tensor:
        """The denoiser's output (B, ...), float32, for a score that is `slope` (B, ...) more at the same latents.

        The score is -eps / noise, so eps moves by -noise * slope, and x0 by noise^2 / signal * slope.
        """
        a, s = self.level(i, output)
        eps, x0 = -s * slope, s.square() / a * slope
        match self.target:
            case "epsilon":
                return output.float() + eps
            case "v_prediction":
                return output.float() + a * eps - s * x0
            case "sample":
                return output.float() + x0
            case "flow_prediction":
                return output.float() + eps - x0
