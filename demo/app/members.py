"""Users and their passwords in a file (Argon2id hashes), and the signed cookies of those who have logged in.

A cookie names its user and a part of the password's hash: it outlives a restart of the app, and ends when
the password changes, the user is removed, or LASTS seconds have passed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from itsdangerous import BadData, URLSafeTimedSerializer

from diffalign.errors import DiffalignError
from diffalign.folders.saving import writing

LASTS = 30 * 24 * 3600
SHORTEST = 8
"""Characters of a password."""


@dataclass(frozen=True)
class Told:
    """What the file holds: what cookies are signed with, and user -> hash of the password."""

    secret: str
    users: dict[str, str]


class Members:
    """The file is read again when it changes, so that users may be added while the app runs."""

    def __init__(self, path: Path) -> None:
        self.path, self._hasher, self._read_at = path, PasswordHasher(), -1
        self._known: Mapping[str, str] = {}
        self._nobody = self._hasher.hash(secrets.token_hex())
        if not self._users():
            raise DiffalignError(
                f"{path} names no user: add one with `diffalign demo-user NAME --auth {path}`."
            )

    def login(self, name: str, password: str) -> str | None:
        """The cookie of a user who gave the right password; an unknown name takes as long to refuse."""
        known = self._users().get(name)
        try:
            self._hasher.verify(known or self._nobody, password)
        except VerificationError:
            return None
        return None if known is None else self._signer.dumps([name, _part(known)])

    def user(self, cookie: str) -> str | None:
        """Whose cookie it is; None where it is forged, too old, or the password has changed."""
        try:
            name, part = self._signer.loads(cookie, max_age=LASTS)
        except (BadData, ValueError, TypeError):
            return None
        known = self._users().get(name)
        return name if known and secrets.compare_digest(part, _part(known)) else None

    def _users(self) -> Mapping[str, str]:
        changed = self.path.stat().st_mtime_ns if self.path.is_file() else 0
        if changed != self._read_at:
            told = _read(self.path)
            self._known, self._signer = told.users, URLSafeTimedSerializer(told.secret)
            self._read_at = changed
        return self._known


def add_user(path: Path, name: str, password: str) -> None:
    """Add a user to the file, or change the password; the file is made where it is missing, for its owner alone."""
    if not name.strip() or not name.isprintable() or len(name) > 64:
        raise DiffalignError(f"a user's name has 1 to 64 printable characters, not {name!r}.")
    if len(password) < SHORTEST:
        raise DiffalignError(f"this password has {len(password)} characters; take {SHORTEST} or more.")
    told = _read(path) if path.exists() else Told(secrets.token_hex(), {})
    told.users[name] = PasswordHasher().hash(password)
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(asdict(told), file, indent=1)
        part.replace(path)


def _read(path: Path) -> Told:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        users, secret = dict(told["users"]), str(told["secret"])
    except FileNotFoundError as error:
        raise DiffalignError(
            f"the file of users {path} does not exist; make it with `diffalign demo-user NAME --auth {path}`."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DiffalignError(
            f"{path} is not a file of users as `diffalign demo-user` writes it: {error!r}. Give another, or restore it."
        ) from error
    return Told(secret, users)


def _part(known: str) -> str:
    return hashlib.sha256(known.encode()).hexdigest()[:16]
