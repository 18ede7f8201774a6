"""Which of several processes this one is: what torchrun says in the environment. Loads nothing heavy."""

from __future__ import annotations

import os

from components.errors import UsageError

TRAINING = ("train_teacher", "train_adapter")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise UsageError(f"the environment's {name} is {text!r}, not a number; start processes with torchrun") from None


def rank() -> int:
    """The number of this process among all, 0 where it is alone."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Its number among those on this machine."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """How many processes work together, 1 where it is alone."""
    return _number("WORLD_SIZE", 1)


def leads() -> bool:
    """Whether this process writes, records and reports for all."""
    return rank() == 0


def only_training(command: str) -> None:
    """Raise UsageError where torchrun started several processes of a command that one process runs."""
    if world_size() > 1 and command.replace("-", "_") not in TRAINING:
        named = " and ".join(name.replace("_", "-") for name in TRAINING)
        raise UsageError(
            f"torchrun started {world_size()} processes of {command.replace('_', '-')}, which runs in one; "
            f"only {named} share their work: start this command without torchrun"
        )
