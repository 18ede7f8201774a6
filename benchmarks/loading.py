"""Load and decode a sample, one thread: splat shards against JPEG shards of the same pictures.

    python benchmarks/loading.py --images ../shared/data/flickr8k-1k --originals ../shared/data/kodak

The stages themselves make the shards: `download` from webdataset tars, `splat_fit` with one iteration (a file's size
and the time to read it do not depend on how well it was fitted). Read from disk (in the page cache) and from an S3
server on this machine, by webdataset and by the project's loader, in turns. A second call goes on where the first
stopped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import PIL
import splat2d
import torch
import webdataset
from loading_readers import addresses, jpeg_shard, one_core, ours, s3_server, timed, with_webdataset
from PIL import Image, features
from records import Journal, Row, module_digest, processor, table
from rich.console import Console

from components.config import DownloadParams, SplatFitParams
from components.download import stage as download
from components.manifest import Artifact, open_artifact
from components.splat_fit import stage as splat_fit
from components.store import open_store
from components.store_s3 import connect

RESULTS = Path(__file__).resolve().parent / "results"
PAPER = {400: 31.33, 900: 18.80, 1600: 13.43, 3136: 6.71}  # times faster than RGB (arXiv 2509.22615)
SPLIT = "train"
MODES = {"first": "first pass", "shuffled": "shuffled"}
BASE = {"reader": "webdataset", "form": "uint8"}


def shards(args: argparse.Namespace, store: str) -> tuple[str, dict[int, str]]:
    """Paths in `store` of the image shards and, by number of Gaussians, of the splat shards that the stages make."""
    params = DownloadParams(
        source="webdataset",
        path=str(args.images),
        image_size=args.size,
        image_format="jpg",
        shard_size=args.shard_size,
        num_val=0,
        num_test=1,
    )
    images = download.run(params, store=store)
    fits = {}
    for number in args.num_gaussians:
        fit = SplatFitParams(num_gaussians=number, recipe="paper", num_iters=1, threads=1)
        fits[number] = splat_fit.run(fit, images=images.url, store=store).manifest.path
    return images.manifest.path, fits


Shards = tuple[Artifact, dict[int, Artifact]]  # of pictures, and of splats by number of Gaussians


def opened(url: str, images: str, fits: dict[int, str]) -> Shards:
    """The same in a store that is a copy of that one."""
    store = open_store(url)
    return open_artifact(f"{url}/{images}", store), {n: open_artifact(f"{url}/{fits[n]}", store) for n in fits}


@contextmanager
def place(where: str, local: str, cores: set[int]) -> Iterator[str]:
    """The store to read from: the folder itself, or a copy of it on an S3 server."""
    if where == "disk":
        yield local
        return
    with s3_server(cores):
        connect().make_bucket(bucket_name="loading")
        source, target = open_store(local), open_store("s3://loading/store")
        for name in source.list():
            with source.local(name) as path:
                target.put_file(name, path)
        yield "s3://loading/store"


def unsettle(artifact: Artifact) -> None:
    """Make files look newly written, so that the store checks their sha256 as it does the first time."""
    for path in Path(artifact.url).rglob("*"):
        os.utime(path)


def jobs(args: argparse.Namespace, given: Shards, fresh: Shards | None) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """Key and measurement of each reader. fresh: a copy whose files may be made to look new."""
    images, splats = given
    count = num_samples(images)
    urls = addresses(images, SPLIT)
    for form in ("uint8", "float32"):
        read = with_webdataset(urls, form, args.batch_size)
        yield {"reader": "webdataset", "form": form}, partial(timed, read, count, args.seconds)
    for number, fitted in ((0, None), *splats.items()):
        key: Row = {"reader": "splatclip", "form": "float32" if number else "uint8", "N": number}
        if fresh is not None:
            again, refitted = fresh[0], fresh[1][number] if number else None
            read = ours(again, refitted, SPLIT, args.batch_size)
            before = partial(unsettle, refitted or again)
            yield key | {"first": True}, partial(timed, read, count, args.seconds, before)
        yield key, partial(timed, ours(images, fitted, SPLIT, args.batch_size), count, args.seconds)
        if fitted is not None and fresh is not None:  # from disk
            read = ours(images, fitted, SPLIT, args.batch_size, shuffled=True)
            yield key | {"shuffled": True}, partial(timed, read, count, args.seconds)


def mean_bytes(artifact: Artifact, name: str) -> float:
    return float(artifact.manifest.metrics["bytes_per_image"][name])


def num_samples(artifact: Artifact) -> int:
    return sum(entry.ok for entry in artifact.manifest.split(SPLIT))


def tar_bytes(artifact: Artifact) -> float:
    return sum(entry.bytes for entry in artifact.manifest.split(SPLIT)) / num_samples(artifact)


def found(journal: Journal, where: str, key: Row) -> dict[int, Row]:
    """Rows of one reader by repeat."""
    rows = [row for row in journal.rows() if row["key"].get("where") == where]
    return {
        row["key"]["repeat"]: row
        for row in rows
        if {name: value for name, value in row["key"].items() if name not in {"where", "repeat"}} == key
    }


def ratio(base: dict[int, Row], rows: dict[int, Row], field: str) -> float | None:
    """Median over the repeats of how much less a sample takes than in the base's pass of the same repeat."""
    both = sorted(base.keys() & rows.keys())
    return median(base[k][field] / rows[k][field] for k in both) if both else None


def verdict(times: float, number: int) -> str:
    if number not in PAPER:
        return f"{times:.1f}"
    return f"{times:.1f} (paper {PAPER[number]:.2f}: {'held' if times >= PAPER[number] else 'missed'})"


def label(key: Row) -> str:
    what = f"splats, N = {key['N']}" if key.get("N") else f"JPEG, {key['form']}"
    reader = "webdataset" if key["reader"] == "webdataset" else "our loader"
    return f"{reader}, {what}" + "".join(f", {words}" for name, words in MODES.items() if key.get(name))


def markdown(journal: Journal) -> str:
    parts = ["# Load and decode a sample, one thread", "\n".join(f"- {line}" for line in journal.notes()), HOW]
    sizes = next((row for row in journal.rows() if row["key"] == {"kind": "bytes"}), None)
    for where in ("disk", "s3"):
        keys: list[Row] = []
        for row in journal.rows():
            key = {name: value for name, value in row["key"].items() if name not in {"where", "repeat"}}
            if row["key"].get("where") == where and key not in keys:
                keys.append(key)
        rows = []
        base, floats = found(journal, where, BASE), found(journal, where, BASE | {"form": "float32"})
        for key in keys:
            mine = found(journal, where, key)
            cpu, wall = (median(row[field] for row in mine.values()) for field in ("cpu_us", "wall_us"))
            number = key.get("N", 0)
            against = [ratio(base, mine, "cpu_us"), ratio(floats, mine, "cpu_us"), ratio(base, mine, "wall_us")]
            cells = [verdict(against[0], number) if against[0] else "-"]
            cells += ["-" if times is None else f"{times:.1f}" for times in against[1:]]
            rows.append([label(key), f"{cpu:.1f}", f"{wall:.1f}", *cells, len(mine)])
        title = "From disk (page cache)" if where == "disk" else "From an S3 server on this machine"
        header = ["reader", "us a sample", "us by wall clock", "times faster than webdataset, uint8"]
        header += ["than webdataset, float32", "than uint8 by wall clock", "repeats"]
        if rows:
            parts += [f"## {title}", table(header, rows)]
    if sizes is not None:
        rows = [[name, f"{one['file']:,.0f}", f"{one['tar']:,.0f}" if "tar" in one else "-"] for name, one in
                sizes["sizes"].items()]  # fmt: skip
        parts += ["## Bytes a picture", table(["", "file", "with its caption and json in the shard"], rows), BYTES]
    larger = [row for row in journal.rows() if row["key"].get("where") == "originals"]
    if larger:
        one, base = larger[0], found(journal, "disk", BASE)
        cpu = median(row["cpu_us"] for row in larger)
        text = f"webdataset on {one['pictures']}, JPEG at quality 95 ({one['bytes_mean']:,.0f} bytes), decoded, resized"
        text += f" (bicubic) and cropped to {one['size']} px: {cpu:.0f} us a sample"
        if base:
            text += f", {cpu / median(row['cpu_us'] for row in base.values()):.1f} times the shards above"
        parts += ["## Pictures that were not resized before", text + ". No ratio to splats is drawn from it."]
    return "\n\n".join(parts) + "\n"


HOW = """Times are processor time a sample, of all threads and child processes (webdataset has curl fetch from S3), as
the machine is shared; the process is bound to one core, the S3 server runs elsewhere and is not counted. The median
over the repeats, in which the readers take turns; ratios are medians of the repeats' ratios. A sample is its picture
and its caption (ours: all captions and the class). webdataset decodes with Pillow; `uint8` is [B, H, W, 3], `float32`
[B, 3, H, W] in [0, 1], which a model takes. Splats come as padded float32 arrays [B, N, 2], [B, N, 3], [B, N, 3] and a
mask. The ratio to `uint8` is what is held against the paper's figure: webdataset's shards here are what img2dataset
writes (pictures resized beforehand, JPEG at quality 95, 4:2:0).

Rows are read in the shards' order but for those called `shuffled`: an epoch in a shuffled order, as training reads a
set that is too large to be kept decoded (each sample's bytes are copied into the shuffle buffer).

Our loader checks the sha256 of each file when it is fetched: always from S3, from disk once in a process (`first
pass`; later passes find the file unchanged). The CRC-32 of each splat file is checked every time. webdataset checks
nothing."""
BYTES = """Every file of N Gaussians is as long as every other. Against raw RGB splats are smaller at each N; against
the JPEG of the same picture they may be larger."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of webdataset tars")
    parser.add_argument("--originals", type=Path, help="a folder of larger pictures, for JPEGs not resized beforehand")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--num-gaussians", type=int, nargs="+", default=[400, 1600, 3136])
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--where", nargs="+", choices=("disk", "s3"), default=["disk", "s3"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of processor time a measurement takes at least")
    parser.add_argument("--out", type=Path, default=RESULTS / "loading_cpu", help="OUT.json and OUT.md")
    args = parser.parse_args()

    others = os.sched_getaffinity(0)
    core, threads = one_core(), torch.get_num_threads()
    others = others - {core} or others
    with tempfile.TemporaryDirectory(prefix="splatclip-") as folder:
        first = f"{folder}/store"
        made = shards(args, first)
        images, splats = opened(first, *made)
        origin: Row = {
            "pictures": f"{num_samples(images)} of {args.images.name}, {args.size} px",
            "shards": f"{args.shard_size} samples each (manifest {images.manifest.sha256[:12]})",
            "batch": args.batch_size,
            "hardware": f"{processor()}, one core, {threads} thread",
            "libraries": f"webdataset {webdataset.__version__}, Pillow {PIL.__version__} (libjpeg-turbo "
            f"{features.version('libjpeg_turbo')}), torch {torch.__version__}",
            "device": f"cpu ({splat2d.backend()})",
            "build": module_digest(),
        }
        journal, console = Journal(args.out.with_suffix(".json"), origin), Console(stderr=True)
        out = args.out.with_suffix(".md")
        journal.once({"kind": "bytes"}, lambda: {"sizes": sizes(images, splats)})
        for where in args.where:
            with place(where, first, others) as url:
                fresh = opened(str(shutil.copytree(first, f"{folder}/fresh")), *made) if where == "disk" else None
                readers = list(jobs(args, opened(url, *made), fresh))
                for repeat in range(args.repeats):  # readers take turns: the machine's speed changes
                    console.print(f"{where}, run {repeat + 1} of {args.repeats}")
                    for key, measure in readers:
                        journal.once({"where": where, **key, "repeat": repeat}, measure)
                    out.write_text(markdown(journal))
        if args.originals:
            originals(args, journal, Path(folder))
        out.write_text(markdown(journal))
    console.print(f"written: {out}")


def sizes(images: Artifact, splats: dict[int, Artifact]) -> dict[str, Any]:
    """Mean bytes a picture of each kind."""
    first = next(iter(splats.values()))
    found: dict[str, Any] = {
        "raw RGB": {"file": mean_bytes(first, "raw")},
        "JPEG": {"file": mean_bytes(first, "image"), "tar": tar_bytes(images)},
    }
    for number, one in splats.items():
        found[f"splats, N = {number}"] = {"file": mean_bytes(one, "gs2d"), "tar": tar_bytes(one)}
    return found


def originals(args: argparse.Namespace, journal: Journal, folder: Path) -> None:
    """Webdataset on JPEGs of larger pictures, which webdataset resizes."""
    pictures = sorted(path for path in args.originals.iterdir() if path.suffix.lower() in {".png", ".jpg", ".jpeg"})
    count, bytes_mean = jpeg_shard(pictures, folder / "originals.tar", max(96, len(pictures)))
    with Image.open(pictures[0]) as one:
        about = f"{len(pictures)} pictures of {args.originals.name} (the first {one.width} x {one.height})"
    read = with_webdataset([str(folder / "originals.tar")], "uint8", args.batch_size, args.size)
    extra: Row = {"pictures": about, "bytes_mean": bytes_mean, "size": args.size}
    for repeat in range(args.repeats):
        journal.once({"where": "originals", "repeat": repeat}, lambda: timed(read, count, args.seconds) | extra)


if __name__ == "__main__":
    main()
