"""What can go wrong, by what the caller should do about it.

Each class carries the exit code of the `splatclip` command: a scheduler reads it to decide whether to try again.
"""

from components.redaction import redacted


class SplatClipError(Exception):
    """Base of every error that SplatCLIP raises on purpose. Secrets in its text's addresses are hidden."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*redacted(args))


class UsageError(SplatClipError):
    """The call itself is wrong: an unknown key, a value out of range (exit 2)."""

    exit_code = 2


class MachineError(UsageError):
    """Not here what the call names, a device or credentials; the same call may work on another machine (exit 2)."""


class PermanentError(SplatClipError):
    """The input is bad and will be bad again; trying again does not help (exit 42)."""

    exit_code = 42


class AccessError(PermanentError):
    """No way to a place, or no right there: credentials, a clock, a name, a mount (exit 42).

    It says nothing of what lies there: another machine, or this one with newer credentials, may get at it.
    """


class TransientError(SplatClipError):
    """Something outside failed for now: a store, a network; try again (exit 75)."""

    exit_code = 75


class Interrupted(SplatClipError):
    """Stopped by a signal after saving its state; the same call goes on from there (exit 143)."""

    exit_code = 143
