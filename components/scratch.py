"""The temporary folder, TMPDIR: where it is full, or there is none, the error names it and says what to do."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import TransientError
from components.store import FULL, os_error

if TYPE_CHECKING:
    from torch import Tensor

_OF_DISKS = FULL | {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE}


@contextmanager
def in_scratch() -> Iterator[None]:
    """A block that uses the temporary folder: what its disk refuses becomes a typed error that names the folder.

    Sources and stores raise errors of their own; other OSErrors pass.
    """
    try:
        where = Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # it tries them all by writing a file
        raise TransientError(f"{error.strerror}; free some space there, or name another one in TMPDIR") from error
    try:
        yield
    except OSError as error:
        named = Path(error.filename) if isinstance(error.filename, str) else None  # a write does not name its file
        inside = named is not None and where in (named, *named.parents)
        if error.errno not in _OF_DISKS and not inside:
            raise
        raise os_error(named or where, error) from error


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder for the length of the block, with the errors of `in_scratch`.

    It goes whatever happens, also where a signal ends its making or its removal (of tempfile's own something stays).
    """
    with in_scratch():
        folder = Path(tempfile.gettempdir()) / f"splatclip-{secrets.token_hex(8)}"
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            try:
                shutil.rmtree(folder, ignore_errors=True)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError where the disk does not take it, as other writers do."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
