"""CLIP score: how well a picture matches its prompt, by any CLIP model of open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from diffalign.reward import DiffalignError, unknown
from diffalign_rewards import _open_clip
from diffalign_rewards._clip import TowerReward


class Clip(TowerReward):
    """Similarity of picture and prompt (CLIP, Radford et al. 2021, arXiv:2103.00020).

    score "cosine": in [-1, 1]; "logit": times the model's learnt scale, about 100, plus its bias where it
    has one (SigLIP). With `baseline`, a text that says what the pictures are anyway ("a photo"), and
    `alpha` in [0, 1], the goal-baseline regularisation takes the cosine's place (VLM-RM, Rocamonde et al.
    2024, arXiv:2310.12921): what differs along other directions than from baseline to prompt counts less.

    Weights: architecture and checkpoint by open_clip's names (github.com/mlfoundations/open_clip, MIT)
    from the local cache, or a file `path`; "local-dir:FOLDER" is a model of one's own. The default is
    OpenAI's ViT-L/14 (code MIT), in timm/vit_large_patch14_clip_224.openai. Differentiable.
    """

    needs = "weights: timm/vit_large_patch14_clip_224.openai, or others"

    def __init__(
        self,
        architecture: str = "ViT-L-14-quickgelu",
        checkpoint: str | None = None,
        path: str | None = None,
        score: Literal["cosine", "logit"] = "cosine",
        baseline: str | None = None,
        alpha: float | None = None,
    ) -> None:
        if score not in ("cosine", "logit"):
            raise unknown("score of clip", score, ["cosine", "logit"])
        if (baseline is None) != (alpha is None) or not 0 <= (alpha or 0) <= 1:
            raise DiffalignError(
                "goal-baseline regularisation takes a text baseline and an alpha in [0, 1], both or none; "
                f"these are {baseline!r} and {alpha}."
            )
        self.score, self.baseline, self.alpha = score, baseline, alpha
        self.tower, self.look = _open_clip.load("clip", architecture, checkpoint, path)

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1] for their prompts."""
        similarity = self.cosine(images, prompts) if self.baseline is None else self._toward(images, prompts)
        if self.score == "cosine":
            return similarity
        model = self.tower.model
        bias = getattr(model, "logit_bias", None)
        logits: Tensor = model.logit_scale.exp() * similarity + (0 if bias is None else bias)
        return logits

    def _toward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        assert self.baseline is not None
        assert self.alpha is not None
        state = self.embed(images)
        goal = self.tower.texts(prompts).to(state)
        return goal_baseline(state, goal, self.tower.texts([self.baseline]).to(state), self.alpha)


def goal_baseline(state: Tensor, goal: Tensor, baseline: Tensor, alpha: float) -> Tensor:
    """1 - |alpha proj(state) + (1 - alpha) state - goal|^2 / 2 on unit features (B, E), as (B,) (VLM-RM).

    proj is onto the line through baseline and goal; alpha 0 gives the cosine of state and goal.
    """
    line = goal - baseline
    squared = line.square().sum(1, keepdim=True).clamp_min(1e-12)  # no line where the prompt is the baseline
    along = ((state - baseline) * line).sum(1, keepdim=True) / squared
    mixed = alpha * (baseline + along * line) + (1 - alpha) * state
    return 1 - (mixed - goal).square().sum(1) / 2
