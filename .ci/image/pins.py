"""Part of the Dockerfile: of pyproject.toml, what the image is made of.

The settings of linters and tests are left out, so that a change of those makes no layer anew.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

text = Path("pyproject.toml").read_text(encoding="utf-8")
kept, keep = [], True
for line in text.splitlines(keepends=True):
    if line.startswith("["):
        table = line.strip().strip("[]")
        keep = not table.startswith("tool.") or table.startswith("tool.scikit-build")
    if keep:
        kept.append(line)
about = tomllib.loads(text)
files = {
    "pyproject.toml": "".join(kept),
    "needs.txt": "\n".join(about["project"]["dependencies"]),
    "tools.txt": "\n".join([*about["build-system"]["requires"], "cmake", "ninja"]),
}
for name, content in files.items():
    path = Path("/pins", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8")
    os.utime(path, (0, 0))
