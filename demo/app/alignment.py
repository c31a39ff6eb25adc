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

from torch import Tensor

from diffalign.errors import DiffalignError
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
        self._pool, self._seen, self._closed = pool, "", threading.Event()
        self.problem = ""
        self._drawn = lru_cache(maxsize=32)(self._draw)
        threading.Thread(target=self._watch, name="weights", daemon=True).start()

    def pictures(self, w: float) -> Tensor:
        """Pictures (P, 3, H, W) of the held-out prompts at strength w; 0 is the base model."""
        trained = self.studio.main.trained
        return self._drawn(trained, w if trained else 0.0)

    def lora(self) -> Path | None:
        """The finished LoRA in diffusers' format."""
        folder = self.training.folder
        path = folder.path / "lora" / LORA_FILE if folder else None
        return path if path and path.is_file() else None

    def close(self) -> None:
        """Stop watching, and stop the run."""
        self._closed.set()
        self.training.stop()

    def look(self) -> None:
        """Take over the weights where there are newer ones."""
        folder, found = self.training.folder, self.training.weights()
        if folder is None or found in ("", self._seen):
            return
        self.studio.main.load(folder)
        self._seen, self.problem = found, ""
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
