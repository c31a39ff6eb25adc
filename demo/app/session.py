"""All that one running app consists of, put together and taken apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffalign import prompts
from diffalign.preferences import Store
from diffalign.settings import config
from diffalign_demo.app.alignment import Alignment
from diffalign_demo.app.artist import Artist, engage
from diffalign_demo.app.booth import Booth
from diffalign_demo.app.improving import Improvement
from diffalign_demo.app.limits import Seats
from diffalign_demo.app.options import Options
from diffalign_demo.app.pool import Pool
from diffalign_demo.app.ranking import Ranking
from diffalign_demo.app.runs import Runs
from diffalign_demo.app.studio import Studio
from diffalign_demo.app.training import Training

HELDOUT = 8
"""Prompts whose pictures are shown before and after training."""
SEARCHES = 2
"""Searches that run at once."""
DRAWN = 20
"""Users whose rounds of Rank are drawn, or wait for it, at once."""
TURBO = "emoji-turbo"


@dataclass
class Session:
    """What the tabs and the API work with."""

    options: Options
    store: Store
    studio: Studio
    heldout: Sequence[str]
    pool: Pool = field(init=False)
    booth: Booth = field(init=False)
    ranking: Ranking = field(init=False)
    alignment: Alignment = field(init=False)
    seats: Seats = field(init=False)
    drawing: Seats = field(init=False)
    searching: dict[str, Improvement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = self.options
        self.pool = Pool(self.studio.paint)
        self.booth = Booth(self.store, self.pool)
        self.ranking = Ranking(self.store, self.studio.main)
        runs = Runs(Path(own.runs), self.studio.main.title, own.votes)
        training = Training(own.training_words(), runs, own.fresh)
        self.alignment = Alignment(training, self.studio, self.pool, self.heldout)
        self.seats, self.drawing = Seats(SEARCHES), Seats(DRAWN)
        self._searchers: dict[str, Artist] = {}

    def searchers(self) -> list[str]:
        """The models that Improve searches with, the quickest first."""
        main = self.studio.main.title
        return [TURBO, main] if main == "emoji" else [main]

    def searcher(self, name: str) -> Artist:
        """A model to search with, loaded when it is first asked for."""
        if name == self.studio.main.title:
            return self.studio.main
        if name not in self._searchers:
            self._searchers[name] = engage(self.options, name)
        return self._searchers[name]

    def close(self) -> None:
        """Stop what runs; votes are on disk already."""
        for search in list(self.searching.values()):
            search.stop()
        self.alignment.close()
        self.pool.close()
        self.store.close()


def begin(options: Options, say: Callable[[str], None] = lambda text: None) -> Session:
    """Open the store and load the models."""
    store = Store.open(options.votes, pictures=options.pictures)
    settings = config.load(options.config, options.words())
    say(f"loading {', '.join([settings.model, *options.judges])}")
    main = engage(options)
    judges = [engage(options, judge) for judge in options.judges]
    studio = Studio(store, prompts.load(settings.prompts), main, judges, options.candidates)
    session = Session(options, store, studio, prompts.load(settings.heldout_prompts, HELDOUT))
    for words in session.alignment.begun():
        say(words)
    return session
