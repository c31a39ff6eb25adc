"""What the command `search` does: from a command line to a folder with pictures and a gallery."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from diffalign.errors import DiffalignError
from diffalign.folders.searchfolder import SearchFolder
from diffalign.launching import build_search
from diffalign.launching.launch import Say, beginning, faults, interrupted, new_path, on_main, processes
from diffalign.launching.progress import SearchBars
from diffalign.launching.seek import Seeker
from diffalign.pages import gallery, outcome
from diffalign.settings import searchconfig
from diffalign.settings.searchconfig import FREE_ON_RESUME, SearchConfig
from diffalign.settings.searchwords import Asked
from diffalign.training.trainer import require_same

LOWER = "prompts_at_once or sample_batch"
"""The keys that cost memory."""


def search(asked: Asked, out: str | None, resume: str | None, say: Say) -> Path:
    """Search as the command line asks, or go on with the search in the folder `resume`; the gallery's path."""
    folder = SearchFolder.open(Path(resume)) if resume else None
    settings = _gone_on_with(folder, asked) if folder else asked.settings()
    processes()
    folder = folder or _new_folder(settings, asked, out or settings.out)
    go_on = f"diffalign search --resume {folder.path}"
    with ExitStack() as stack:
        stack.enter_context(interrupted(go_on, say, "finished prompt"))
        with beginning(folder, resume), faults("the same command", LOWER):
            seeker = stack.enter_context(build_search.seeker(settings, folder))
        stack.enter_context(faults(f"{go_on} {_smaller(settings)}", LOWER))
        _run(seeker, say)
        return on_main(lambda: _concluded(seeker), folder.path / "gallery.html")


def _run(seeker: Seeker, say: Say) -> None:
    """Search with a bar; the processes wait for each other at the end."""
    say(seeker.policy.describe())
    say(f"{seeker.method} for {len(seeker.prompts)} prompt(s) into {seeker.folder.path}")
    with SearchBars(seeker.left, main=seeker.rank == 0) as bars:
        seeker.hear, seeker.finished = bars.hear, bars.finished
        seeker.run()
    on_main(lambda: None, None)


def _concluded(seeker: Seeker) -> Path:
    outcome.conclude(seeker.folder, seeker.watched, len(seeker.prompts))
    return gallery.write(seeker.folder)


def _smaller(settings: SearchConfig) -> str:
    """What halves the memory, as an override."""
    return f"prompts_at_once={max(1, settings.prompts_at_once // 2)}"


def _new_folder(settings: SearchConfig, asked: Asked, out: str | None) -> SearchFolder:
    name = Path(asked.config).stem if asked.config else settings.search.name.rpartition(":")[2]
    path = new_path(out, Path("searches") / name)
    return on_main(lambda: SearchFolder.create(path, settings.resolved()), SearchFolder(path))


def _gone_on_with(folder: SearchFolder, asked: Asked) -> SearchConfig:
    """The folder's own config, of which only what does not change the results may be overridden."""
    if asked.method or asked.config or asked.options:
        raise DiffalignError(
            "--resume goes on with a folder's own search; give nothing beside it but key=value of "
            f"{', '.join(sorted(FREE_ON_RESUME - {'out'}))}."
        )
    source = str(folder.path / "config.yaml")
    settings = searchconfig.load(source, asked.overrides)
    require_same(searchconfig.load(source).identity(), settings.identity(), folder.path)
    return settings
