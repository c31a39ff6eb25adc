"""Training from the votes: new weights go into the app's model as soon as the run writes them.

A thread of its own watches the run's folder, so that new pairs come from the new model whoever looks.
Dimensions: P held-out prompts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.models import comfy
from diffalign.models.weights import LORA_FILE
from diffalign.seeds import derive
from diffalign_demo.app.pool import Pool
from diffalign_demo.app.studio import Studio
from diffalign_demo.app.training import Training

EVERY = 2.0
"""Seconds between two looks at the run's folder."""


class Alignment:
    """`heldout` prompts are drawn from the same seeds before and after."""

    def __init__(self, training: Training, studio: Studio, pool: Pool, heldout: Sequence[str]) -> None:
        self.training, self.studio, self.heldout = training, studio, list(heldout)
        self._pool, self._closed = pool, threading.Event()
        self._seen: Path | None = None
        self.problem = ""
        self._drawn = lru_cache(maxsize=32)(self._draw)
        threading.Thread(target=self._watch, name="weights", daemon=True).start()

    def pictures(self, w: float) -> Tensor:
        """Pictures (P, 3, H, W) of the held-out prompts at strength w; 0 is the base model."""
        trained = self.studio.main.trained
        return self._drawn(trained, w if trained else 0.0)

    def lora(self, layout: Literal["diffusers", "comfyui"] = "diffusers") -> Path | None:
        """The file of the finished LoRA, with the keys of diffusers or of ComfyUI."""
        run = self.training.folder
        if run is None or not (path := run.path / "lora" / LORA_FILE).is_file():
            return None
        return path if layout == "diffusers" else comfy.export(path.parent, run.path / "comfyui.safetensors")

    def close(self) -> None:
        """Stop watching, and stop the run."""
        self._closed.set()
        self.training.stop()

    def look(self) -> None:
        """Take over the weights where there are newer ones."""
        run, newest = self.training.folder, self.training.newest()
        if run is None or newest in (None, self._seen):
            return
        self.studio.main.load(run, None if newest.parent == run.checkpoints else newest)
        self._seen, self.problem = newest, ""
        self._pool.clear()

    def _watch(self) -> None:
        while not self._closed.wait(EVERY):
            try:
                self.look()
            except DiffalignError as error:
                self.problem = str(error)
            except Exception:  # such as a file that is being replaced: the next look finds it whole
                logging.getLogger(__name__).debug("weights could not be read", exc_info=True)

    def _draw(self, trained: str, w: float) -> Tensor:
        seeds = [derive("held-out", n) for n in range(len(self.heldout))]
        return self.studio.main.draw(self.heldout, seeds, w)[1]
