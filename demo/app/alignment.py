"""Training from the votes: new weights go into the app's model as soon as the run writes them.

A thread of its own watches the run's folder, so that new pairs come from the new model whoever looks.
Dimensions: P held-out prompts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.folders.runfolder import RunFolder
from diffalign.models import comfy
from diffalign.models.weights import LORA_FILE
from diffalign.seeds import derive
from diffalign.training.voted import Voters
from diffalign_demo.app.pool import Pool
from diffalign_demo.app.runs import lacking, weights
from diffalign_demo.app.studio import Studio
from diffalign_demo.app.training import Training

EVERY = 2.0
"""Seconds between two looks at the run's folder."""


class Alignment:
    """`heldout` prompts are drawn from the same seeds before and after.

    waits: how many more votes on what is drawn now the run waits for; `voters`: whose, nobody named: anybody's.
    problem: why the newest weights are not drawn with.
    """

    def __init__(self, training: Training, studio: Studio, pool: Pool, heldout: Sequence[str]) -> None:
        self.training, self.studio, self.heldout = training, studio, list(heldout)
        self._pool, self._closed = pool, threading.Event()
        self._tried: tuple[Path, int] | None = None
        self._own: Path | None = None
        self.problem, self.waits = "", 0
        self.voters: Voters = {}
        self._drawn = lru_cache(maxsize=32)(self._draw)
        self._files = TemporaryDirectory(prefix="diffalign-", ignore_cleanup_errors=True)
        self._exporting, self._said = threading.Lock(), ""
        self._try_to_look()
        self._thread = threading.Thread(target=self._watch, name="weights", daemon=True)
        self._thread.start()

    def pictures(self, w: float) -> Tensor:
        """Pictures (P, 3, H, W) of the held-out prompts at strength w; 0 is the base model."""
        trained = self.studio.main.trained
        return self._drawn(trained, w if trained else 0.0)

    def lora(self, layout: Literal["diffusers", "comfyui"] = "diffusers") -> Path | None:
        """The file of the LoRA that is drawn with, if any, with the keys of diffusers or of ComfyUI."""
        own = self._own
        if own is None or not self.studio.main.trained or not (own / LORA_FILE).is_file():
            return None
        return self._for_comfyui(own) if layout == "comfyui" else own / LORA_FILE

    def begun(self) -> Iterator[str]:
        """In words, which earlier run the app goes on with, and what is wrong with it."""
        if (run := self.training.folder) and self.studio.main.trained:
            yield f"going on with what {run.path} learned; --fresh begins with the model as it was"
        if self.problem:
            yield f"beginning with the model as it was, as what was learned before does not fit: {self.problem}"

    def close(self) -> None:
        """Stop watching, and stop the run."""
        self._closed.set()
        self.training.close()
        self._thread.join(timeout=10)
        self._files.cleanup()

    def look(self) -> None:
        """Take over the weights where there are newer ones, and see what the run waits for."""
        run = self.training.look()
        if run and (newest := weights(run)):
            self._take(run, newest)
        name = self.studio.main.name
        self.waits, self.voters = lacking(run, self.studio.store, name) if run else (0, {})

    def waits_for(self, user: str) -> int:
        """How many more votes the run waits for, where it counts this user's."""
        return self.waits if not self.voters or user in self.voters else 0

    def _take(self, run: RunFolder, newest: Path) -> None:
        """Draw with weights that were not tried yet."""
        if (stamp := (newest, newest.stat().st_mtime_ns)) == self._tried:
            return
        try:
            self.studio.main.load(run, None if newest.parent == run.checkpoints else newest)
        except DiffalignError as error:
            self.problem = str(error)
        else:
            self._own, self.problem = newest, ""
            self._pool.clear()
        self._tried = stamp

    def _watch(self) -> None:
        while not self._closed.wait(EVERY):
            self._try_to_look()

    def _try_to_look(self) -> None:
        try:
            self.look()
        except Exception as error:  # such as a database that is locked: the next look may see it
            if str(error) != self._said:
                logging.getLogger(__name__).warning("the runs could not be looked at: %s", error)
            self._said = str(error)

    def _for_comfyui(self, own: Path) -> Path:
        target = Path(self._files.name) / self.studio.main.trained / "comfyui.safetensors"
        with self._exporting:
            return target if target.exists() else comfy.export(own, target)

    def _draw(self, trained: str, w: float) -> Tensor:
        seeds = [derive("held-out", n) for n in range(len(self.heldout))]
        return self.studio.main.draw(self.heldout, seeds, w)[1]
