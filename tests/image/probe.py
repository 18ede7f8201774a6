"""Run in the image: what somebody finds there, whatever the uid, with a read-only root. Prints JSON."""

from __future__ import annotations

import getpass
import importlib
import json
import os
import pkgutil
import sys
import tempfile
import warnings
from pathlib import Path

warnings.simplefilter("error")
FOLDERS = ("/", "/opt/splatclip", "/etc", "/var/tmp", "/tmp", str(Path.home()))


def writable(folder: str) -> bool:
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def modules() -> list[str]:
    found = []
    for name in ("components", "pipelines"):
        package = importlib.import_module(name)
        found += [module.name for module in pkgutil.walk_packages(package.__path__, f"{name}.")]
    return [name for name in found if not name.endswith("__main__")]


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages say when they are imported
        for name in modules():
            importlib.import_module(name)
        from components.openclip import import_open_clip

        import_open_clip()
        import torch
    from splat2d import _core

    from components.provenance import origin

    status = Path("/proc/self/status").read_text(encoding="utf-8")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    about = {
        "uid": os.getuid(),
        "user": getpass.getuser(),
        "capabilities": int(fields["CapEff"], 16),
        "no_new_privileges": fields["NoNewPrivs"].strip() == "1",
        "writable": [
            folder for folder in ("/", "/opt/splatclip", "/etc", "/tmp", str(Path.home())) if writable(folder)
        ],
        "path": sys.path,
        "cuda_kernels": _core.built_with_cuda,
        "torch_cuda": torch.version.cuda,
        "origin": origin(),
        "modules": len(modules()),
    }
    print(json.dumps(about))


if __name__ == "__main__":
    main()
