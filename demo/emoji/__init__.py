"""The embedded model: a small, real text-to-image model of emoji, its pictures, prompts and CLIP.

Nothing heavy is imported before a function needs it. `python -m diffalign_demo.emoji.recipe` rebuilds
everything in this folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

ROOT = Path(__file__).parent
BASE = ROOT / "base"
TURBO = ROOT / "turbo"
LORA = "pytorch_lora_weights.safetensors"
CLIP = ROOT / "clip"
NOISY_CLIP = ROOT / "noisy_clip"
PICTURES = ROOT / "pictures.parquet"


def load_pipeline(**kwargs: Any) -> StableDiffusionPipeline:
    """The base model; `kwargs` go to `StableDiffusionPipeline.from_pretrained`. It draws 64×64 pixels."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(BASE, **kwargs)


def load_turbo(**kwargs: Any) -> StableDiffusionPipeline:
    """The one-step model, for one to four steps and `guidance_scale=1`; `kwargs` as in `load_pipeline`."""
    return fuse_turbo(load_pipeline(**kwargs), TURBO)


def fuse_turbo(pipeline: StableDiffusionPipeline, folder: Path) -> StableDiffusionPipeline:
    """The base pipeline with the LoRA of `folder` fused into it, and with its scheduler."""
    from diffusers import DDIMScheduler

    pipeline.unet.load_lora_adapter(folder, prefix="unet", weight_name=LORA)
    pipeline.unet.fuse_lora()
    pipeline.unet.unload_lora()
    pipeline.scheduler = DDIMScheduler.from_pretrained(folder)
    return pipeline


def prompts(split: str) -> list[str]:
    """Names without a style word: "train" for alignment runs, "heldout" for judging them (64)."""
    path = ROOT / "prompts" / f"{split}.txt"
    if not path.is_file():
        raise ValueError(
            f"prompt list {split!r} is unknown; there are {sorted(p.stem for p in path.parent.iterdir())}"
        )
    return path.read_text().splitlines()


def pictures() -> list[dict[str, str | bytes]]:
    """All 3,240 pictures as rows: name, style (flat or 3d), code, category, split, webp (bytes)."""
    import pyarrow.parquet as pq

    rows: list[dict[str, str | bytes]] = pq.read_table(PICTURES).to_pylist()
    return rows


def load_clip(**kwargs: Any) -> tuple[Any, Any]:
    """The emoji CLIP, frozen and in evaluation mode, and its tokenizer (texts → (N, 12) ids).

    Pictures go in as (N, 3, 64, 64) in [−1, 1]; `kwargs` go to `open_clip.create_model`.
    """
    import open_clip

    model = open_clip.create_model(f"local-dir:{CLIP}", **kwargs).eval().requires_grad_(False)
    return model, open_clip.get_tokenizer(f"local-dir:{CLIP}")
