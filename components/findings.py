"""What a check found: damage, or a warning; each says what, where and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from components.errors import PermanentError

DAMAGE, WARNING = "damage", "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    level: str
    where: str
    what: str
    remedy: str

    @classmethod
    def damage(cls, where: str, what: str, remedy: str) -> Finding:
        """Something is lost or wrong."""
        return cls(DAMAGE, where, what, remedy)

    @classmethod
    def warning(cls, where: str, what: str, remedy: str) -> Finding:
        """Nothing is lost, but somebody should know."""
        return cls(WARNING, where, what, remedy)

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}; {self.remedy}"

    @classmethod
    def of(cls, error: PermanentError, where: str, remedy: str = "", path: str = "") -> Finding:
        """An error as damage: its text without the place in front, `remedy` for what it says to do after its last ";".

        path: where the file was read, if that is not `where`.
        """
        text = str(error).removeprefix(f"{path or where}: ")
        what, _, given = text.rpartition("; ")
        return cls.damage(where, what or text, remedy or given)
