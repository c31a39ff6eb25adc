"""Capture once, own the loop: what a pipeline does around its denoiser, for any `DiffusionPipeline`.

Three seams (`encode_prompt`, the denoiser, `scheduler.step`) are enough to encode, to predict by
replaying the pipeline's own loop, and to decode. Dimensions: B samples, N steps.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.models.conditioning import Batch, Conditioning, fill_masks, rows_layout
from diffalign.models.inference import Inference, Moment, difference, tolerance
from diffalign.models.layout import Layout, fits, learn, settle_masks
from diffalign.models.schedulers import grid_of
from diffalign.models.shell import Shell, Stop, Watch
from diffalign.models.stub import Stub, main_input
from diffalign.models.template import Mismatch, Template

PROBES = ("a", "a photo of two cats")
logger = logging.getLogger(__name__)

_NUMBERS = itertools.count()
Denoise = Callable[[str, tuple[Any, ...], dict[str, Any]], Any]


class Capture:
    """One pipeline with one set of arguments: its conditioning, its grid, its guided output, its pictures."""

    def __init__(self, shell: Shell, denoise: Denoise) -> None:
        self.shell, self.denoise = shell, denoise
        self.stub = Stub()
        self.prompt_layout: Layout | None = None
        self.sample: Batch | None = None
        self.template: Template | None = None
        self.reason = ""
        self._key = f"arguments {next(_NUMBERS)}"
        self._replay: dict[int, str] = {}
        self._initial: tuple[int, ...] | None = None

    # --- encode ---

    def encode(self, prompts: Sequence[str]) -> Batch:
        """What the pipeline makes of these prompts, together."""
        assert self.prompt_layout is not None
        values = self.prompt_layout.flatten(self._encoded(list(prompts)))
        if not fits(self.prompt_layout, values, len(prompts)):
            raise DiffalignError(
                f"{self.shell.family}: {list(prompts)[:3]} are encoded into another form than the prompts {PROBES} "
                "that diffalign learnt from. Encode them yourself and give `encode` the embeddings."
            )
        return fill_masks(Batch(self.prompt_layout, values, len(prompts)))

    def embeds(self, given: dict[str, Any], size: int) -> Batch:
        """Conditioning given as the pipeline's own arguments, with a row for each sample."""
        for name in given:
            if not self.shell.takes(name):
                self.shell._checked({name: None})
        tree = {"inputs": given}
        layout = rows_layout(given, size)
        layout = Layout({"inputs": layout.skeleton}, layout.leaves)
        return Batch(layout, layout.flatten(tree), size)

    def learn_prompts(self) -> Batch:
        """Find, with a short and a longer prompt, where the samples are in what `encode_prompt` returns."""
        short, both = self._encoded([PROBES[0]]), self._encoded(list(PROBES))
        layout = learn(short, both, (1, 2))
        self.prompt_layout = settle_masks(layout, layout.flatten(short), layout.flatten(both))
        return self.encode(PROBES)

    def _encoded(self, prompts: list[str]) -> dict[str, Any]:
        outputs: list[Any] = []

        def encode(original: Any, args: Any, kwargs: Any) -> Any:
            outputs.append(original(*args, **kwargs))
            return outputs[-1]

        watch = Watch(denoise=_stop, step=_stop, encode=encode)
        with torch.no_grad():
            self.shell.run({"prompt": prompts}, len(prompts), watch)
        return {"inputs": {"prompt": prompts}, "encoded": outputs}

    # --- probe ---

    def probe(self, batch: Batch, predict: str) -> None:
        """Learn everything else from one batch of two prompts; one real denoiser call, the rest stubbed."""
        self.sample, self._probe_batch = batch[:1], batch
        self._learn_output(batch[:1])
        self._learn_initial(batch)
        inference = self._start_inference() if predict != "replay" else None
        self._trace(batch, inference)
        self.grid = grid_of(self.shell.scheduler, self.shell.family)
        self._finish_inference(inference)
        if self.template is None and predict == "template":
            raise DiffalignError(
                f"{self.shell.family}: predict='template' is not possible: {self.reason}. Use predict='auto'."
            )
        if self.template is None:
            if predict == "auto":
                logger.warning("%s: predict replays the pipeline, because %s", self.shell.family, self.reason)
            self.check_replay(range(self.grid.steps))
        self._check_size()
        self.stub.forget()

    def _learn_output(self, batch: Batch) -> None:
        def denoise(name: str, args: Any, kwargs: Any) -> Any:
            output = self.denoise(name, args, kwargs)
            self.stub.learn(name, self._main(name, args, kwargs), output)
            return output

        with torch.no_grad():
            self._run(batch, Watch(denoise, _stop))

    def _learn_initial(self, batch: Batch) -> None:
        """Whether the pipeline starts from latents we give as they are; then it draws none itself."""
        seen: list[Tensor] = []

        def step(output: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
            seen.append(sample)
            raise Stop

        if not self.shell.takes("latents"):
            return
        with torch.no_grad():
            self._run(batch, Watch(self._blank, step))
            given = torch.ones_like(seen[0]) if seen else torch.ones(())
            with contextlib.suppress(ValueError, RuntimeError, IndexError, TypeError):
                self._run(batch, Watch(self._blank, step), latents=given)
        if len(seen) == 2 and _is(seen[1], given):
            self._initial = tuple(given.shape[1:])
            self._initial_like = given[:0]

    def _trace(self, batch: Batch, inference: Inference | None) -> None:
        """Show every step to the inference, and remember what is needed to check a replay.

        The denoiser is stubbed, and the latents between the steps are random.
        """
        self._outputs: list[Tensor] = []

        def take(moment: Moment) -> Tensor:
            if not self._outputs:
                self._first = moment.sample
            self._require_unchanged(moment, len(self._outputs))
            self._outputs.append(_some(moment.output))
            self._show(inference, moment)
            if len(self._outputs) == len(self.shell.scheduler.all_timesteps):
                raise Stop
            return self._latents(len(self._outputs))

        with torch.no_grad():
            self._run(batch, self._recorded(take))
            if len(self._outputs) == self.shell.steps == 1:
                self._trace_again(batch, inference)
        seen, steps = len(self._outputs), self.shell.steps
        if seen != steps:
            raise DiffalignError((_SKIPPED if seen else _UNSEEN).format(self.shell.family, seen, steps))
        self.latent_shape, self.dtype = tuple(self._first.shape[1:]), self._first.dtype

    def _trace_again(self, batch: Batch, inference: Inference | None) -> None:
        """In a run of one step all arguments look constant: show that step at other latents too."""
        before: list[Moment] = []

        def take(moment: Moment) -> Tensor:
            if not before:
                before.append(moment)
                return self._latents(1)
            self._require_unchanged(moment, 1)
            self._show(inference, moment)
            raise Stop

        self._run(batch, self._recorded(take, keep=[0, 0]))

    def _recorded(self, take: Callable[[Moment], Tensor], keep: Sequence[int] | None = None) -> Watch:
        """The denoiser stubbed; `take` sees every step and says which latents the next one gets."""
        calls: list[tuple[str, list[Any], Any]] = []

        def denoise(name: str, args: Any, kwargs: Any) -> Any:
            output = self._stubbed(name, args, kwargs)
            calls.append((name, [list(args), dict(kwargs)], output))
            return output

        def step(output: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
            moment = Moment(calls.copy(), _same_channels(output, sample), torch.as_tensor(timestep), sample)
            calls.clear()
            return take(moment)

        return Watch(denoise, step, keep=keep)

    def _require_unchanged(self, moment: Moment, k: int) -> None:
        if not _is(moment.sample, self._latents(k)):
            raise DiffalignError(_CHANGED.format(self.shell.family))

    def _latents(self, k: int) -> Tensor:
        """The latents of the trace at step k."""
        if k == 0:
            return self._first
        drawn = torch.randn(self._first.shape, generator=torch.Generator().manual_seed(k))
        return drawn.to(self._first.device, self._first.dtype)

    # --- template ---

    def _start_inference(self) -> Inference | None:
        try:
            return Inference(self._learn_arguments(self._probe_batch), self._numbers())
        except Mismatch as problem:
            self.reason = str(problem)
            return None

    def _show(self, inference: Inference | None, moment: Moment) -> None:
        if inference is not None and not self.reason:
            try:
                inference.add(moment)
            except Mismatch as problem:
                self.reason = str(problem)

    def _finish_inference(self, inference: Inference | None) -> None:
        if inference is None or self.reason:
            self.reason = self.reason or "asked for"
            return
        try:
            self.template = inference.template()
        except Mismatch as problem:
            self.reason = str(problem)

    def _learn_arguments(self, batch: Batch) -> Layout:
        """Where the samples are in the denoiser's arguments; choosing rows must commute with capturing."""
        rows = [*reversed(range(batch.size)), 0]
        small, large = self._arguments(batch), self._arguments(batch[rows])
        layout = learn(small, large, (batch.size, batch.size + 1))
        taken = Batch(layout, layout.flatten(small), batch.size)[rows].values
        for leaf, ours, theirs in zip(layout.leaves, taken, layout.flatten(large), strict=True):
            if leaf.kind in ("rows", "items") and not _alike(ours, theirs):
                raise Mismatch("an argument of the denoiser mixes the samples of a batch")
        return layout

    def _arguments(self, batch: Batch) -> list[Any]:
        """[args, kwargs] of each denoiser call of the first step."""
        calls: list[Any] = []

        def denoise(name: str, args: Any, kwargs: Any) -> Any:
            calls.append([list(args), dict(kwargs)])
            return self._blank(name, args, kwargs)

        with torch.no_grad():
            self._run(batch, Watch(denoise, _stop))
        return calls

    def prepared(self, cond: Conditioning) -> Conditioning:
        """The same, with the denoiser's arguments found out now: whatever is taken from it has them too."""
        if self.template is not None:
            self.captured(cond)
        return cond

    def captured(self, cond: Conditioning) -> Batch:
        """The denoiser's arguments for this conditioning, found out once and kept with it."""
        assert self.template is not None
        if self._key not in cond.captured:
            tree, layout = self._arguments(cond.batch), self.template.layout
            values = layout.flatten(tree)
            if not fits(layout, values, len(cond)):
                layout = self._learn_arguments(cond.batch)
                if layout.skeleton != self.template.layout.skeleton:
                    raise DiffalignError(f"{self.shell.family}: these prompts need predict='replay'.")
            cond.captured[self._key] = self.template.stripped(Batch(layout, values, len(cond)))
        return cond.captured[self._key]

    # --- replay ---

    def replay(self, x: Tensor, index: int, cond: Conditioning) -> Tensor:
        """The pipeline's own guided output at latents x (B, ...) and one step of the grid."""
        if index not in self._replay:
            self.check_replay([index])
        return self._replayed(x, index, cond.batch, self._replay[index], self.denoise)

    def check_replay(self, indices: Sequence[int] | range) -> None:
        """Choose for each step the shorter replay that gives what a full run gives; refuse where none does."""
        batch = self._probe_batch
        for index in indices:
            for way in ("pair", "prefix"):
                with torch.no_grad():
                    output = self._replayed(self._latents(index), index, batch, way, self._stubbed)
                if output is not None and self._agrees(output, index):
                    self._replay[index] = way
                    break
            else:
                raise DiffalignError(_DEPENDS.format(self.shell.family, index))

    def _agrees(self, output: Tensor, index: int) -> bool:
        return difference(_some(output), self._outputs[index]) <= tolerance(output)

    def _replayed(self, x: Tensor, index: int, batch: Batch, way: str, denoise: Denoise) -> Tensor:
        """pair: the loop over the timesteps [first, this one]; prefix: over all, up to this one.

        The denoiser is stubbed until the last of them, and `scheduler.step` hands over x.
        """
        last = 1 if way == "pair" else index
        done = 0

        def ask(name: str, args: Any, kwargs: Any) -> Any:
            return (self._blank if done < last else denoise)(name, args, kwargs)

        def step(output: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
            nonlocal done
            if done == last:
                raise Stop(_same_channels(output, sample) if _is(sample, x) else None)
            done += 1
            return x

        extra = {"latents": x} if last == 0 and self._initial else {}
        result: Tensor = self._run(
            batch, Watch(ask, step, keep=[0, index] if way == "pair" else None), **extra
        )
        return result

    # --- decode ---

    def decode(self, latents: Tensor) -> Tensor:
        """The pipeline's own tail on latents (B, ...): pictures (B, 3, H, W) or videos (B, F, 3, H, W)."""
        assert self.sample is not None
        batch = self.sample[[0] * len(latents)]
        watch = Watch(self._blank, lambda output, timestep, sample: latents, keep=[self.grid.steps - 1])
        pictures = self._run(batch, watch)[0]
        pictures = torch.stack(list(pictures)) if isinstance(pictures, list) else pictures
        self._require_size(pictures)
        return pictures.float()

    def _check_size(self) -> None:
        """Notice a size that the pipeline will not make before anything is sampled, where its VAE allows that."""
        unlike = contextlib.suppress(RuntimeError, TypeError, ValueError, IndexError)
        if {"height", "width", "num_frames"} & self.shell.call.keys():
            with unlike, torch.no_grad(), self.shell.blank_pictures():
                self.decode(self._first[:1])

    def _require_size(self, pictures: Tensor) -> None:
        """Pipelines round sizes, and some ignore a height without a width."""
        made = {"height": pictures.shape[-2], "width": pictures.shape[-1]}
        made |= {"num_frames": pictures.shape[1]} if pictures.ndim == 5 else {}
        asked = {name: self.shell.call.get(name) for name in made}
        if any(value not in (None, made[name]) for name, value in asked.items()):
            raise DiffalignError(_SIZE.format(self.shell.family, made, asked))

    # --- common ---

    def _run(self, batch: Batch, watch: Watch, **extra: Any) -> Any:
        tree = batch.to(self.shell.device).tree()
        if "encoded" in tree:
            remembered: Iterator[Any] = iter(tree["encoded"])
            watch.encode = lambda original, args, kwargs: next(remembered)
        if self._initial is not None:
            extra = {"latents": self._initial_like.new_zeros(batch.size, *self._initial), **extra}
        return self.shell.run(tree["inputs"], batch.size, watch, **extra)

    def _main(self, name: str, args: Any, kwargs: Any) -> Any:
        return main_input(self.shell.denoisers[name], args, kwargs)

    def _blank(self, name: str, args: Any, kwargs: Any) -> Any:
        return self.stub.blank(name, self._main(name, args, kwargs))

    def _stubbed(self, name: str, args: Any, kwargs: Any) -> Any:
        return self.stub(name, self._main(name, args, kwargs), args, kwargs)

    def _numbers(self) -> list[float]:
        """All numbers in the pipeline's call that a guidance rule may contain."""
        defaults = {k: p.default for k, p in self.shell.parameters.items()}
        values = {**defaults, **self.shell.call}.items()
        return [float(v) for k, v in values if isinstance(v, int | float) and ("guidance" in k or "cfg" in k)]


def _stop(*_: Any) -> Any:
    raise Stop


def _some(output: Tensor) -> Tensor:
    """Enough of an output to know it by."""
    return output.detach().flatten()[:: -(-output.numel() // 4096)].clone()


def _same_channels(output: Tensor, sample: Tensor) -> Tensor:
    """The output without a learned variance, as diffusers' own `step` cuts it off."""
    return output if output.shape == sample.shape else output.narrow(1, 0, sample.shape[1])


def _is(sample: Tensor, x: Tensor) -> bool:
    return sample.shape == x.shape and torch.equal(sample.detach(), x.detach().to(sample.dtype))


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and (
            not a.is_floating_point() or torch.allclose(a, b, rtol=1e-3, atol=1e-4)
        )
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_alike(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


_SIZE = (
    "{}: this pipeline makes {} where `call` asks for {}. Give every size, height and width together, in numbers that "
    "it makes without rounding."
)
_UNSEEN = (
    "{}: `scheduler.step` was never called in a whole run. This pipeline steps in another way (with a scheduler of its "
    "own making, say), and diffalign cannot see what its denoiser's output becomes."
)
_SKIPPED = (
    "{}: this pipeline takes only {} of its {} steps. diffalign samples from pure noise to the end: leave out "
    "arguments that skip steps (`strength`, `denoising_start`, `denoising_end`)."
)
_CHANGED = (
    "{}: this pipeline changes its latents between two steps (blends in a picture, say), so that its samples are not "
    "those of the denoiser alone. diffalign cannot align it in this setting."
)
_DEPENDS = (
    "{}: its guided output at step {} depends on what the denoiser said at earlier steps (a guider with momentum, or a "
    "rule that keeps a history). Such a sampler is no Markov chain and has no log-probabilities; switch that off."
)
