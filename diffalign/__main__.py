"""`python -m diffalign`, `accelerate launch -m diffalign` and the command `diffalign`."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from diffalign.commands.cli import run

    run()


if __name__ == "__main__":
    main()
