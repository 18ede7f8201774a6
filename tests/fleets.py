"""A set of pictures in several shards, the command that fits it, and what lies in a store afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import ROOT
from picture_sets import commit_images, png_samples

from components.config import SplatFitParams
from components.manifest import AT_WORK, Artifact

PARAMS: dict[str, Any] = {"num_gaussians": 8, "num_iters": 10, "threads": 1}


def picture_set(store: Path | str, shards: int = 10, per_shard: int = 3) -> Artifact:
    """Pictures of 16 pixels, the first two shards of the split `test`."""
    numbered = [("test" if i < 2 else "train", png_samples(i * per_shard, per_shard, 16, 16)) for i in range(shards)]
    return commit_images(str(store), numbered)


def profile(fleet: dict[str, Any] | None = None, **more: Any) -> str:
    return json.dumps({"splat_fit": PARAMS | more, "fleet": fleet or {}})


def start(images: str, store: Path | str, *args: str, params: str = "", **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "components", "splat-fit", "--params", params or profile()]
    return subprocess.Popen(
        [*command, "--images", images, "--store", str(store), "--no-tracking", *args],
        cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(images: str, store: Path | str, *args: str, params: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    process = start(images, store, *args, params=params, **env)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def fitted(store: Path | str) -> dict[str, bytes]:
    """All files of the store's fits by name, but for the mark of a worker that began as others were finishing."""
    files = sorted(path for path in (Path(store) / "splat_fit").rglob("*") if path.is_file() and path.name != AT_WORK)
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def fitted_at_once(section: SplatFitParams, images: Artifact, store: Path) -> dict[str, bytes]:
    """What one call leaves that does all of it."""
    from components.splat_fit import stage

    stage.run(section, images=images.url, store=str(store))
    return fitted(store)
