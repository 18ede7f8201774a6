"""Runs the `splatclip` command in forked children, with everything imported once: one JSON request a line on stdin.

Started by faults.py with fault_shim.c loaded. A child is the command as it is: real files, real signals, its exit code.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

# Work that a rerun may repeat: where it is done, and how much one call does.
WORK: dict[str, tuple[str, Callable[..., int]]] = {
    "components.download.stage": ("make_sample", lambda *args, **more: 1),
    "components.splat_fit.stage": ("splat2d.fit", lambda images, *args, **more: len(images)),
    "components.trainer": ("_one_step", lambda *args, **more: 1),
}


def watch(module: Any, log: int) -> None:
    """Have each call note its amount of work before it begins."""
    path, amount = WORK[module.__name__]
    *owners, name = path.split(".")
    for owner in owners:
        module = getattr(module, owner)
    call = getattr(module, name)

    def watched(*args: Any, **more: Any) -> Any:
        os.write(log, f"{amount(*args, **more)}\n".encode())
        return call(*args, **more)

    setattr(module, name, watched)


def child(case: dict[str, Any]) -> None:
    """Run the command; never returns."""
    code = 1
    try:
        os.environ.update(case["env"])
        tempfile.tempdir = case["tmp"]
        os.dup2(os.open(case["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
        os.dup2(os.open(case["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        work = os.open(case["work"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for name in WORK:
            if name in sys.modules:
                watch(sys.modules[name], work)
        if case["plant"]:
            importlib.import_module("fault_planted").PLANTED[case["plant"]]()
        if case["part_size"]:
            importlib.import_module("components.store_s3").PART_SIZE = case["part_size"]
        from components.__main__ import main

        shim = ctypes.CDLL(None)
        shim.fault_arm(
            ":".join(case["folders"]).encode(), ctypes.c_long(case["point"]), case["action"], case["when"],
            case["error"], case["port"], case["points"].encode(),
        )  # fmt: skip
        code = main(case["argv"])
        shim.fault_disarm()
        with open(case["modules"], "w") as stream:
            stream.write("\n".join(sys.modules))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001  as the interpreter ends a program
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, deadline: float) -> int:
    """The exit code, the negative number of the signal that ended it, or -SIGALRM where it took too long."""
    descriptor = os.pidfd_open(pid)
    late = not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]
    if late:
        os.kill(pid, signal.SIGKILL)
    os.close(descriptor)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return -signal.SIGALRM if late else status


def learn(names: list[str]) -> None:
    """Import what a child had to import."""
    for name in names:
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # made by hand, or half of another
                importlib.import_module(name)
    own = 1 + ("pyarrow" in sys.modules)  # its jemalloc has one, and minds forks itself
    tasks = len(os.listdir("/proc/self/task"))
    assert tasks <= own, f"{tasks} threads: a fork would lose them"


def main() -> None:
    """Import what argv names, then serve."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "components.openclip" in sys.modules:
        sys.modules["components.openclip"].import_open_clip()
    learn([])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        learn(request.get("learn", []))
        pids = []
        for case in request["cases"]:
            pid = os.fork()
            if pid == 0:
                child(case)
            pids.append(pid)
        deadline = time.monotonic() + request["seconds"]
        print(json.dumps([wait(pid, deadline) for pid in pids]), flush=True)


if __name__ == "__main__":
    main()
