"""Checkpoints of a training: parameters, the optimiser's moments and what the curve has collected, in safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from components.errors import PermanentError
from components.scratch import save_tensors, scratch_folder
from components.store import Store

CHECKPOINTS = "_checkpoint"
REMEDY = "delete it to start over"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where and how often a run is saved: each `every` steps and at its end, as _checkpoint/<name>.safetensors."""

    store: Store
    name: str
    every: int = 200

    @property
    def file(self) -> str:
        """Its name in the store."""
        return f"{CHECKPOINTS}/{self.name}.safetensors"

    @property
    def where(self) -> str:
        """Its address, for messages."""
        return f"{self.store.url}/{self.file}"

    def write(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace what is saved, atomically: tensors on the CPU, and a state of JSON values."""
        with scratch_folder() as folder:
            path = folder / "checkpoint.safetensors"
            save_tensors(tensors, path, {"state": json.dumps(state)})
            self.store.put_file(self.file, path)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last, or None. Raises PermanentError naming the file where it cannot be read."""
        if not self.store.exists(self.file):
            return None
        try:
            with self.store.local(self.file) as path, safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                if not isinstance(state, dict):
                    raise TypeError("its state is not a mapping")
                return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 - not a mapping
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise self.damaged(error) from error

    def damaged(self, error: Exception) -> PermanentError:
        """The error of a file that is no checkpoint."""
        return PermanentError(f"{self.where}: not a readable checkpoint ({error!r}); {REMEDY}")


def delete_checkpoints(store: Store) -> None:
    """Remove all checkpoints under a prefix: for after the stage's manifest is written."""
    for name in store.list(f"{CHECKPOINTS}/"):
        store.delete(name)
