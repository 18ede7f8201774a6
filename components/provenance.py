"""Where code, data and image of a run come from: the tags that every run and artifact carries."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from components.store import sha256_file

NONE = "none"
CHECKOUT = Path(__file__).resolve().parent.parent
DVC_LOCK = "dvc.lock"


def _git(*words: str) -> str | None:
    """What git says of the checkout, or None where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(CHECKOUT), *words],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # `git status` would write the checkout's index
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_version() -> tuple[str, str]:
    """The commit of the code and whether it was changed since ("true", "false"); "none" where unknown.

    SPLATCLIP_GIT_SHA (set in the image; it may end in -dirty) comes before the checkout that the code runs from.
    """
    given = os.environ.get("SPLATCLIP_GIT_SHA", "").strip()
    if given:
        return given.removesuffix("-dirty"), str(given.endswith("-dirty")).lower()
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != CHECKOUT:  # installed somewhere below another project's checkout
        return NONE, NONE
    sha, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return sha or NONE, NONE if changes is None else str(bool(changes)).lower()


def dvc_hash() -> str:
    """sha256 of dvc.lock in the working directory."""
    lock = Path(DVC_LOCK)
    return sha256_file(lock) if lock.is_file() else NONE


def origin() -> dict[str, str]:
    """What the code is, as found now. A run looks once, when it begins: a commit may come while it works."""
    sha, dirty = git_version()
    return {
        "git.sha": sha,
        "git.dirty": dirty,
        "dvc.hash": dvc_hash(),
        "image.digest": os.environ.get("SPLATCLIP_IMAGE_DIGEST", "").strip() or NONE,
    }


def provenance(
    begun: Mapping[str, str] | None = None, *, kfp_run_id: str = "", data_hash: str = "", params_hash: str = ""
) -> dict[str, str]:
    """The tags of a run or an artifact; "none" where there is nothing to name.

    begun: origin() of when the run began (default: of now); data_hash: sha256 of the manifest of the images;
    params_hash: of the parameters that decide the output.
    """
    return {
        **(begun or origin()),
        "data.hash": data_hash or NONE,
        "params.hash": params_hash or NONE,
        "kfp.run_id": kfp_run_id or NONE,
    }
