"""What people prefer: a store that loses no vote, its pictures, and what the votes say."""

from __future__ import annotations

from diffalign.errors import DiffalignError

try:
    from diffalign.preferences.agreement import Agreement, agreement
    from diffalign.preferences.pickapic import Imported, read_dataset, read_parquet, to_dataset, write_parquet
    from diffalign.preferences.pictures import Picture, Pictures
    from diffalign.preferences.scores import Score, bradley_terry, by_user
    from diffalign.preferences.store import Ballot, Store
    from diffalign.preferences.suspicion import suspicious
    from diffalign.preferences.vote import Choice, Kind, Vote
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] not in ("sqlalchemy", "alembic", "scipy"):
        raise
    raise DiffalignError(
        f"votes are stored with {error.name}, which is not installed: pip install 'diffalign[demo]'."
    ) from error

__all__ = [
    "Agreement",
    "Ballot",
    "Choice",
    "Imported",
    "Kind",
    "Picture",
    "Pictures",
    "Score",
    "Store",
    "Vote",
    "agreement",
    "bradley_terry",
    "by_user",
    "read_dataset",
    "read_parquet",
    "suspicious",
    "to_dataset",
    "write_parquet",
]
