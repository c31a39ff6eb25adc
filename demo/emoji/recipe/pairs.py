"""Step `pairs`: noise, and the latents that the guided base model makes of it in 8 steps of DPM-Solver++."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor

CHUNK, CHUNKS = 64, 77
GUIDANCE, STEPS = 3.0, 8
STRIDE = 2003
"""A prime: multiples of it, modulo the number of captions, go through all of them before any comes twice."""
FIRST_SEED = 1_000_000  # far from the seeds that pictures are usually drawn with


def captions(path: Path) -> list[str]:
    """All captions of a `pictures.parquet`: ⟨style⟩ ⟨name⟩ of every picture, and every ⟨name⟩."""
    rows = pq.read_table(path, columns=["style", "name"]).to_pylist()
    return sorted({f"{row['style']} {row['name']}" for row in rows} | {row["name"] for row in rows})


class Teacher:
    """The base model with guidance, and its text features of some captions (N, 12, 128)."""

    @torch.no_grad()
    def __init__(self, folder: Path, texts: Sequence[str]) -> None:
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        self.unet = pipeline.unet
        self.unet.requires_grad_(False).set_attn_processor(AttnProcessor())
        self.scheduler = DPMSolverMultistepScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="trailing"
        )
        self.alphas = self.scheduler.alphas_cumprod
        ids = pipeline.tokenizer(["", *texts], padding="max_length", truncation=True, return_tensors="pt")
        features = pipeline.text_encoder(ids.input_ids).last_hidden_state
        self.empty, self.texts = features[:1], features[1:]

    @torch.no_grad()
    def epsilon(self, x: Tensor, t: Tensor, index: Tensor) -> Tensor:
        """Guided ε at latents x (B, 4, 16, 16) and timesteps t (B,), of the captions `index` (B,)."""
        text = torch.cat([self.empty.expand(len(x), -1, -1), self.texts[index]])
        both: Tensor = self.unet(torch.cat([x, x]), torch.cat([t, t]), text).sample.float()
        plain, told = both.chunk(2)
        return torch.lerp(plain, told, GUIDANCE)

    def draw(self, noise: Tensor, index: Tensor) -> Tensor:
        """Latents that noise (B, 4, 16, 16) becomes in 8 steps of DPM-Solver++."""
        x = noise
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.epsilon(x, t.expand(len(x)), index), t, x).prev_sample
        return x


@dataclass
class Pairs:
    """Which caption (N,), from which noise, which latents (N, 4, 16, 16)."""

    index: Tensor
    noise: Tensor
    latents: Tensor

    def draw(self, count: int, generator: torch.Generator) -> Pairs:
        """Some of them at random, in full precision."""
        rows = torch.randint(len(self.index), (count,), generator=generator)
        return Pairs(self.index[rows], self.noise[rows].float(), self.latents[rows].float())


def build(out: Path, work: Path, chunks: int = CHUNKS) -> None:
    """Writes `work/pairs`, a file per 64 pairs; what is there already stays."""
    texts = captions(out / "pictures.parquet")
    teacher = Teacher(out / "base", texts)
    (work / "pairs").mkdir(parents=True, exist_ok=True)
    for chunk in range(chunks):
        path = work / f"pairs/{chunk:05d}.safetensors"
        if not path.exists():
            index = (torch.arange(chunk * CHUNK, (chunk + 1) * CHUNK) * STRIDE) % len(texts)
            noise = torch.randn(CHUNK, 4, 16, 16, generator=torch.Generator().manual_seed(FIRST_SEED + chunk))
            with torch.autocast("cpu", torch.bfloat16):
                latents = teacher.draw(noise, index)
            save_file(
                {"index": index, "noise": noise.half(), "latents": latents.half()}, path.with_suffix(".part")
            )
            path.with_suffix(".part").rename(path)


def load(work: Path) -> Pairs:
    """All pairs in `work/pairs`."""
    chunks = [load_file(path) for path in sorted((work / "pairs").glob("*.safetensors"))]
    return Pairs(*(torch.cat([chunk[key] for chunk in chunks]) for key in ("index", "noise", "latents")))
