"""Readers of image and splat shards, each timed over whole passes in one thread."""

from __future__ import annotations

import io
import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from records import Row

from components.images import fit_square
from components.loader import ImageSet
from components.manifest import Artifact
from components.store_s3 import connect

Pass = Callable[[], int]  # reads everything once; returns how many samples came
MOST_PASSES = 40

SERVER = """
import logging, signal, threading
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


def one_core() -> int:
    """Bind this process, and whatever it starts, to one core; returns which. Libraries run one thread."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    return core


@contextmanager
def s3_server(cores: set[int]) -> Iterator[None]:
    """An S3 server (moto) in a process of its own, on `cores`; the environment tells the store where it is."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1"}
    before = dict(os.environ)
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        try:
            os.sched_setaffinity(process.pid, cores)
            port = process.stdout.readline().strip() if process.stdout else ""
            if not port:
                raise SystemExit("the S3 server did not start: pip install 'moto[s3,server]'")
            os.environ.update(keys, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
            os.environ.pop("AWS_ENDPOINT_URL_S3", None)
            yield
        finally:
            process.terminate()
            os.environ.clear()
            os.environ.update(before)


def ours(images: Artifact, splats: Artifact | None, split: str, batch_size: int, *, shuffled: bool = False) -> Pass:
    """The project's loader: pictures as uint8 [B, H, W, 3], or splats as padded float32.

    In the shards' order, as evaluation reads; shuffled: an epoch as training reads a set too large for memory, each
    pass another one.
    """
    data = ImageSet(images, split, splats=splats, want_images=splats is None, max_cached_bytes=0)
    epochs = itertools.count()

    def read() -> int:
        batches = data.batches(batch_size, epoch=next(epochs), shuffle=shuffled, drop_last=False)
        return sum(len(batch) for batch in batches)

    return read


def addresses(images: Artifact, split: str) -> list[str]:
    """What webdataset reads the shards of: paths, or presigned addresses that it has curl fetch."""
    names = [entry.name for entry in images.manifest.split(split)]
    if not images.url.startswith("s3://"):
        return [f"{images.url}/{name}" for name in names]
    bucket, _, prefix = images.url.removeprefix("s3://").partition("/")
    client = connect()
    return [client.presigned_get_object(bucket_name=bucket, object_name=f"{prefix}/{name}") for name in names]


def with_webdataset(urls: Sequence[str], form: str, batch_size: int, size: int = 0) -> Pass:
    """Webdataset with Pillow. form: `uint8` [B, H, W, 3] or `float32` [B, 3, H, W] in [0, 1]; size: resized to it."""
    data = webdataset.WebDataset(list(urls), shardshuffle=False)
    if size:
        data = data.decode("rgb8").map_dict(jpg=lambda image: fit_square(image, size))
    else:
        data = data.decode("rgb8" if form == "uint8" else "torchrgb")
    data = data.to_tuple("jpg", "txt").batched(batch_size)

    def read() -> int:
        count = 0
        for pictures, captions in data:
            batch = torch.as_tensor(pictures)
            if batch.ndim != 4 or len(batch) != len(captions):
                raise RuntimeError(f"webdataset gave {list(batch.shape)} pictures and {len(captions)} captions")
            count += len(batch)
        return count

    return read


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # webdataset's curl
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(read: Pass, expected: int, least_s: float, before: Callable[[], Any] = lambda: None) -> Row:
    """Microseconds a sample of processor time (threads and child processes included) and of wall time.

    Whole passes until `least_s` seconds of processor time; one before them is not counted. `before` is called ahead of
    each, outside the time.
    """
    before()
    read()
    cpu = wall = 0.0
    passes = 0
    while passes < MOST_PASSES and (cpu < least_s or not passes):
        before()
        start, start_cpu = time.perf_counter(), _cpu_s()
        count = read()
        cpu, wall = cpu + _cpu_s() - start_cpu, wall + time.perf_counter() - start
        if count != expected:
            raise RuntimeError(f"a pass gave {count} samples instead of {expected}")
        passes += 1
    each = 1e6 / (passes * expected)
    return {"cpu_us": cpu * each, "wall_us": wall * each, "passes": passes, "num_samples": expected}


def jpeg_shard(pictures: Sequence[Path], path: Path, count: int, quality: int = 95) -> tuple[int, float]:
    """A webdataset tar of `count` JPEGs of whole pictures (repeated as often as it takes); their number, mean bytes."""
    files = []
    for picture in pictures:
        stream = io.BytesIO()
        with Image.open(picture) as image:
            image.convert("RGB").save(stream, "JPEG", quality=quality)
        files.append(stream.getvalue())
    with webdataset.TarWriter(str(path)) as tar:
        for index in range(count):
            tar.write({"__key__": f"{index:06d}", "jpg": files[index % len(files)], "txt": f"picture {index}"})
    return count, float(np.mean([len(file) for file in files]))
