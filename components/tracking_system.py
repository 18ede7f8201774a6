"""What a step uses of its machine: CPU, memory, GPUs, under the names that MLflow's "System metrics" page shows."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from components.processes import world_size

INTERVAL_S = 10.0
SHARE = 0.002  # of the time gone by: a week's run leaves some thousand points, not a hundred thousand
QUERY = ("index", "utilization.gpu", "memory.used", "memory.total", "power.draw")
UNKNOWN = (psutil.Error, OSError, RuntimeError)  # what psutil raises where /proc is cut down
MEBI = 1.048576  # nvidia-smi counts MiB, MLflow's page MB
Values = dict[str, float]


def in_pod() -> bool:
    """Whether this process runs in Kubernetes."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def gpu_values() -> Values:
    """Use and memory of each GPU that is to be seen here; empty where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values: Values = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        fields = [_number(text) for text in line.split(",")]
        if len(fields) != len(QUERY) or fields[0] is None:
            continue
        name = f"system/gpu_{fields[0]:.0f}"
        _, use, used, total, power = fields
        found = {
            f"{name}_utilization_percentage": use,
            f"{name}_memory_usage_megabytes": None if used is None else used * MEBI,
            f"{name}_memory_usage_percentage": None if used is None or not total else 100 * used / total,
            f"{name}_power_usage_watts": power,
        }
        values |= {key: round(value, 1) for key, value in found.items() if value is not None}
    return values


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]", as under MIG
        return None


def gpus_held(device: str, backend: str = "") -> int:
    """GPUs that the step keeps from others: all that its pod sees; elsewhere one a process if it computed on CUDA.

    device: as its parameters say, "" if they say nothing; backend: of the kernels, as the output's manifest says.
    """
    if in_pod():
        return len({name.split("_")[1] for name in gpu_values()})
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_initialized()
    return world_size() * int("cuda" in backend or (device in ("auto", "cuda") and used))


def forget_peak() -> None:
    """Let peak_memory() count from here on, where Linux and torch can."""
    with contextlib.suppress(OSError):  # no Linux, or /proc is read-only: the whole process' peak is told instead
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> Values:
    """Most memory held so far, of this process and on the GPU by torch [MB]."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        peak = int(found[1]) * 1024 if found else peak
    values = {"peak_memory_megabytes": peak / 1e6}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        values["peak_gpu_memory_megabytes"] = torch.cuda.max_memory_allocated() / 1e6
    return values


class SystemMonitor:
    """Samples in a thread of its own, at once, then about every ten seconds, and once more when stopped.

    tell(step, values) is called in that thread, and in the caller's of stop().
    """

    def __init__(self, tell: Callable[[int, Values], None]) -> None:
        self._tell, self._step = tell, 0
        self._has_gpu = True
        self._process = psutil.Process()
        self._network = self._disk = None
        with contextlib.suppress(*UNKNOWN):
            self._network, self._disk = psutil.net_io_counters(), psutil.disk_io_counters()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)
        psutil.cpu_percent()  # the first call only marks the time that the next one counts from

    def start(self) -> None:
        """Begin."""
        self._started = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Take the last sample."""
        self._stop.set()
        self._thread.join()
        self._sample()

    def _work(self) -> None:
        pause = 0.5
        while not self._stop.wait(pause):
            self._sample()
            pause = max(INTERVAL_S, SHARE * (time.monotonic() - self._started))

    def _sample(self) -> None:
        with contextlib.suppress(*UNKNOWN):
            self._take()

    def _take(self) -> None:
        memory, network, disk = psutil.virtual_memory(), psutil.net_io_counters(), psutil.disk_io_counters()
        values = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
            "system/process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
        if network is not None and self._network is not None:
            values["system/network_receive_megabytes"] = (network.bytes_recv - self._network.bytes_recv) / 1e6
            values["system/network_transmit_megabytes"] = (network.bytes_sent - self._network.bytes_sent) / 1e6
        if disk is not None and self._disk is not None:
            values["system/disk_read_megabytes"] = (disk.read_bytes - self._disk.read_bytes) / 1e6
            values["system/disk_write_megabytes"] = (disk.write_bytes - self._disk.write_bytes) / 1e6
        if self._has_gpu:
            found = gpu_values()
            self._has_gpu = bool(found)
            values |= found
        self._tell(self._step, {name: round(value, 1) for name, value in values.items()})
        self._step += 1
