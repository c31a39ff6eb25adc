"""What the commands `train` and `sample` do, from a config's name to a folder's path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from safetensors import SafetensorError

from diffalign.errors import DiffalignError, RunError
from diffalign.folders import checkpoint
from diffalign.folders.runfolder import RunFolder
from diffalign.folders.saving import save_png
from diffalign.folders.searchfolder import SearchFolder
from diffalign.launching import build
from diffalign.launching.progress import Bars, quiet_libraries
from diffalign.launching.trackers import open_trackers
from diffalign.pages import report
from diffalign.policy import Policy
from diffalign.seeds import derive
from diffalign.settings import config
from diffalign.settings.config import RunConfig
from diffalign.steps import stochastic
from diffalign.training.trainer import Listener, Trainer, require_same
from diffalign.walk import decode, rollout

PICTURES = (".png", ".webp")
"""What pictures are written as; both hold animations, for video."""

Say = Callable[[str], None]
T = TypeVar("T")


def train(
    source: str | None, overrides: Sequence[str], out: str | None, resume: str | None, say: Say
) -> Path:
    """Train as a config says, or go on with the run in the folder `resume`; the report's path."""
    folder = RunFolder.open(Path(resume)) if resume else None
    settings = _settings(source, overrides, folder)
    processes()
    if folder:
        _go_on_with(folder, settings)
    folder = folder or _new_folder(settings, out or settings.out, source or "run")
    with ExitStack() as stack:
        with beginning(folder, resume), faults(again := "the same command"), interrupted(again, say):
            trainer = stack.enter_context(closing(build.trainer(settings, folder)))
        stack.enter_context(faults(go_on := f"diffalign train --resume {folder.path}"))
        stack.enter_context(interrupted(go_on, say))
        _introduce(trainer, folder, say)
        _run(trainer, settings, resume is not None)
        return on_main(lambda: report.write(folder), folder.path / "report.html")


def sample(
    run: str, prompts: Sequence[str], out: Path, seed: int, *, base: bool, best: bool = False
) -> list[Path]:
    """Pictures of a run's model, of its best evaluation's, or of the untuned one; the files written."""
    folder = RunFolder.open(Path(run))
    settings, pictures_to = own_settings(folder), _pictures(out)
    with faults("the same command"), torch.no_grad():
        policy = build.policy(settings, build.accelerator(settings))
        if not base:
            load_trained(policy, folder, best=best)
        count = range(len(prompts))
        steps, noise = ([derive(seed, kind, k) for k in count] for kind in ("steps", "noise"))
        batch = rollout(
            policy, build.rule(settings, policy), prompts, steps, noise_seeds=noise, group=count,
            batch=settings.sample_batch,
        )  # fmt: skip
        return _save(decode(policy, batch.final, settings.sample_batch), pictures_to)


@contextmanager
def faults(again: str, lower: str = "sample_batch or micro_batch") -> Iterator[None]:
    """Turn a full disk and full memory into errors that say what to do; `lower` are keys that cost memory."""
    quiet_libraries()
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory: {str(error).splitlines()[0]} Lower {lower}, set gradient_checkpointing=true, "
            f"or use a narrower dtype. To go on: {again}"
        ) from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"{error}. Nothing that was saved is lost; to go on: {again}") from error


@contextmanager
def interrupted(go_on: str, say: Say, kept: str = "saved round") -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; every {kept} is kept. To go on: {go_on}")
        raise


@contextmanager
def beginning(folder: RunFolder | SearchFolder, resume: str | None) -> Iterator[None]:
    """Leave no folder of something new that cannot even begin."""
    try:
        yield
    except BaseException:
        if resume is None:
            folder.discard()
        raise


def processes() -> PartialState:
    """The launched processes; without an accelerator, accelerate joins them only if told to use the CPU."""
    build.refuse_plugins()
    if "WORLD_SIZE" in os.environ and not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def _settings(source: str | None, overrides: Sequence[str], folder: RunFolder | None) -> RunConfig:
    if source is not None:
        return config.load(source, overrides)
    if folder is None:
        raise DiffalignError(
            "say which config to train: a packaged one (see `diffalign list`) or a YAML file."
        )
    return config.load(str(folder.path / "config.yaml"), overrides)


def own_settings(folder: RunFolder) -> RunConfig:
    """What the run was made with, but for its trackers, whose packages may be gone."""
    return config.validate(folder.config() | {"trackers": []}, source=str(folder.path / "config.yaml"))


def _go_on_with(folder: RunFolder, settings: RunConfig) -> None:
    """Refuse another config than the run's own; keep what may change on resuming."""
    require_same(own_settings(folder).identity(), settings.identity(), folder.path)
    on_main(lambda: folder.write_config(settings.resolved()), None)


def _new_folder(settings: RunConfig, out: str | None, source: str) -> RunFolder:
    path = new_path(out, Path("runs") / Path(source).stem)
    return on_main(lambda: RunFolder.create(path, settings.resolved()), RunFolder(path))


def new_path(out: str | None, base: Path) -> Path:
    """The same new folder on every process: the given one, or the first free one of BASE, BASE-2, ..."""
    tries = [Path(out)] if out else [base, *(base.with_name(f"{base.name}-{n}") for n in range(2, 10_000))]
    path = next((path for path in tries if not (path / "config.yaml").exists()), tries[-1])
    return Path(broadcast_object_list([str(path)])[0]) if processes().num_processes > 1 else path


def _introduce(trainer: Trainer, folder: RunFolder, say: Say) -> None:
    """What is about to happen: the model as it was understood, the batch arithmetic, the place."""
    run = trainer.run
    say(run.policy.describe())
    say(run.describe())
    say(f"{trainer.schedule.rounds} rounds into {folder.path}")


def _run(trainer: Trainer, settings: RunConfig, resume: bool) -> None:
    run, folder = trainer.run, trainer.folder
    main = run.accelerator.is_main_process
    go_on = resume and checkpoint.latest(folder.checkpoints) is not None
    if resume and not go_on:
        on_main(lambda: folder.cut(0), None)
    with ExitStack() as stack:
        log = open_trackers(settings.trackers, folder.path, settings.resolved(), stack) if main else None
        bars = stack.enter_context(Bars(settings.rounds, _totals(trainer), main=main))
        run.advance = bars.advance
        trainer.listen = _listener(bars, log)
        trainer.train(resume=go_on)


def _listener(bars: Bars, log: Callable[[Mapping[str, Any]], None] | None) -> Listener:
    def listen(row: dict[str, Any]) -> None:
        bars.finished(row)
        if log:
            log(row)

    return listen


def _totals(trainer: Trainer) -> dict[str, int]:
    """How many latents x steps each phase of a round takes on this process."""
    run, processes = trainer.run, trainer.run.accelerator.num_processes
    batching, grid = run.batching, run.policy.grid
    prompts, noisy = batching.prompts_per_round // processes, len(stochastic(run.rule, grid))
    keep = getattr(trainer.algorithm, "keep", None)
    kept = min(batching.images_per_prompt, 2 * keep if keep else batching.images_per_prompt)
    return {
        "evaluating": len(trainer.evaluator.prompts) // processes * grid.steps,
        "sampling": prompts * batching.images_per_prompt * grid.steps,
        **dict.fromkeys(("reference", "update"), prompts * kept * noisy),
    }


def on_main(action: Callable[[], T], otherwise: T) -> T:
    """The action's result on the main process; `otherwise` on the rest, which wait."""
    state = processes()
    result = action() if state.is_main_process else otherwise
    state.wait_for_everyone()
    return result


def load_trained(policy: Policy, folder: RunFolder, *, best: bool = False) -> None:
    """The best or the final weights; before the end, the newest checkpoint's, averaged where it has an EMA."""
    path = folder.path / ("lora-best" if best else "lora")
    if path.is_dir():
        policy.load(path)
    elif best:
        raise DiffalignError(f"{folder.path} has no lora-best: no evaluation yet, or keep_best is false.")
    else:
        state = checkpoint.load(checkpoint.latest(folder.checkpoints))
        weights, ema = state["policy"], state["optimizer"]["ema"]
        policy.load_adapter_state(dict(zip(weights, ema["shadow_params"], strict=True)) if ema else weights)


def _pictures(out: Path) -> Path:
    """Where pictures go: a file that can be written, or the stem of several, which may be in a folder."""
    out = out / "picture" if out.is_dir() else out
    if out.suffix.lower() not in ("", *PICTURES):
        raise DiffalignError(
            f"{out} is no picture that can be written: end its name in {', '.join(PICTURES)}, or leave the end out."
        )
    return out


def _save(pictures: torch.Tensor, out: Path) -> list[Path]:
    """One picture under its name; several numbered beside it."""
    stem, suffix = (out, ".png") if not out.suffix else (out.with_suffix(""), out.suffix)
    one = len(pictures) == 1 and bool(out.suffix)
    paths = [out] if one else [stem.with_name(f"{stem.name}-{k:03d}{suffix}") for k in range(len(pictures))]
    out.parent.mkdir(parents=True, exist_ok=True)
    for picture, path in zip(pictures, paths, strict=True):
        save_png(picture if picture.ndim == 4 else picture[None], path)
    return paths
