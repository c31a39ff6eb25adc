"""The LoRA that the app hands out, in a plain diffusers pipeline, draws what the app draws."""

from __future__ import annotations

import shutil
import time
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from app.serving import CLIENT, within
from app.trained import trained
from diffusers import DDIMScheduler, StableDiffusionPipeline
from packages import ROOT
from PIL import Image
from torchvision.transforms.functional import to_tensor

from diffalign.seeds import derive
from diffalign_demo.app.options import Options
from diffalign_demo.app.session import Session, begin

pytestmark = [pytest.mark.weights, pytest.mark.usefixtures("one_thread")]
PROMPT, STEPS, GUIDANCE = "red apple", 10, 3.0


@pytest.fixture
def running(tmp_path: Path) -> Session:
    """An app that goes on with a run, and draws without noise in its steps, as a pipeline by itself does."""
    votes = str(tmp_path / "votes.db")
    trained(tmp_path / "runs" / "run", votes, scale=0.05)
    told = yaml.safe_load((ROOT / "configs" / "emoji-d3po-votes.yaml").read_text())
    assert (told["steps"], told["guidance_scale"]) == (STEPS, GUIDANCE)
    (tmp_path / "still.yaml").write_text(yaml.safe_dump(told | {"rule": {"name": "ddim", "eta": 0.0}}))
    return begin(Options(config=str(tmp_path / "still.yaml"), votes=votes, runs=tmp_path / "runs"))


def seen(session: Session, client: httpx.Client) -> tuple[int, dict[str, torch.Tensor]]:
    """The seed of a pair to judge, and its pictures as a browser gets them, by the models that drew them."""
    client.post("/api/prompt", json={"prompt": PROMPT, "mode": "judge"}).raise_for_status()
    while (answer := client.get("/api/pair", params={"mode": "judge"})).status_code == 503:
        time.sleep(0.2)
    pair, images = answer.json(), {}
    infos = {picture: session.store.pictures.info(picture) for picture in pair["pictures"]}
    for picture, info in infos.items():
        content = client.get(f"/api/picture/{picture}").content
        images[info.model] = to_tensor(Image.open(BytesIO(content)))
    ((seed, prompt),) = {(info.seed, info.prompt) for info in infos.values()}
    assert prompt == PROMPT
    return seed, images


def plain(lora: Path | None, seed: int) -> torch.Tensor:
    """What diffusers alone makes of the same noise."""
    pipeline = StableDiffusionPipeline.from_pretrained(ROOT / "demo" / "emoji" / "base", use_safetensors=True)
    assert type(pipeline.scheduler) is DDIMScheduler
    pipeline.set_progress_bar_config(disable=True)
    if lora:
        pipeline.load_lora_weights(lora)
    size = pipeline.unet.config.sample_size
    dice = torch.Generator().manual_seed(derive(seed, "noise"))
    noise = torch.randn(1, pipeline.unet.config.in_channels, size, size, generator=dice)
    drawn = pipeline(
        PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, eta=0.0, latents=noise, output_type="pt"
    )
    return drawn.images[0]


def test_a_downloaded_lora_draws_in_diffusers_what_the_app_draws(running: Session, tmp_path: Path):
    with within(running) as url, httpx.Client(base_url=url, **CLIENT) as client:
        seed, ours = seen(running, client)
        (tmp_path / "lora").mkdir()
        file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
        file.write_bytes(client.get("/api/lora").raise_for_status().content)
    shutil.rmtree(tmp_path / "runs")
    base, tuned = ours["emoji"], ours[running.studio.main.name]
    theirs = {"base": plain(None, seed), "tuned": plain(file.parent, seed)}
    step = 1.5 / 255  # what the app shows is rounded to 256 levels
    assert (theirs["base"] - base).abs().max() < step
    assert (theirs["tuned"] - tuned).abs().max() < step
    assert (tuned - base).abs().mean() > 0.02
