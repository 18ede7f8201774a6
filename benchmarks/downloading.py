"""Fetching a list of URLs, a quarter of them bad, from a web server on this machine, here and with img2dataset.

    python benchmarks/downloading.py --images ../shared/data/flickr8k-1k/*.tar --img2dataset /path/to/img2dataset

Both make webdataset tars of 224 px pictures from the same list, in turns, with the same number of requests at a time,
the same deadline and number of retries. A run's time goes from the server's first request to the end of the command,
so that neither is charged for its imports. A second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from records import Journal, Row, module_digest, processor, table
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHARE_BAD = 4  # every so many-th address is one of BAD
GOOD_LATER = {"then-500", "then-503", "to/ok"}  # that give a picture in the end
BAD = (
    "404", "then-500", "hang", "short", "page", "circle/0", "chain/12", "out/10.0.0.1/", "403", "then-503", "to/ok",
    "410", "out/169.254.169.254/",
)  # fmt: skip
ENDLESS = ("huge/unsaid", "huge/said", "drip")  # in a second list, for splatclip alone: img2dataset waits for their end


def addresses(count: int, num_pictures: int, kinds: tuple[str, ...] = BAD) -> list[tuple[str, bool]]:
    """Paths on the server, and whether a picture comes of them."""
    found = []
    for row in range(count):
        how = kinds[row // SHARE_BAD % len(kinds)] if row % SHARE_BAD == SHARE_BAD - 1 else "ok"
        alone = how.count("/") and how != "to/ok"
        found.append((f"/{how}" if alone else f"/{how}/{row % num_pictures}", how == "ok" or how in GOOD_LATER))
    return found


@contextmanager
def server(images: list[Path]) -> Iterator[tuple[str, int]]:
    """The address of a web server in a process of its own, and how many pictures it has."""
    command = [sys.executable, str(ROOT / "tests" / "web.py"), *map(str, images)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url, number = (process.stdout.readline() if process.stdout else "").split()
            yield url, int(number)
        finally:
            process.terminate()


def started(url: str) -> float:
    """When the server was first asked for a picture since this was last called, as a Unix time."""
    with urllib.request.urlopen(f"{url}/_first") as answer:
        return float(answer.read())


def timed(command: list[str], url: str, cwd: Path) -> Row:
    """Run a command; its time from the first request on, its processor time and its largest memory, imports and all."""
    started(url)
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "SPLATCLIP_TRACKING": "off"}
    with (cwd / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    end = time.time()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}: {(cwd / 'log').read_text()[-2000:]}")
    cpu = used.ru_utime + used.ru_stime
    return {"wall_s": end - started(url), "cpu_s": cpu, "memory_mib": used.ru_maxrss / 1024}


def ours(args: argparse.Namespace, listed: Path, url: str, folder: Path) -> Row:
    params = folder / "params.yaml"
    params.write_text(
        f"download: {{source: urls, path: {listed}, dataset: web, image_size: 224, image_format: jpg, num_val: 0,"
        f" num_test: {args.shard_size}, num_train: 0, shard_size: {args.shard_size}, urls: {{robots: true,"
        f" concurrency: {args.concurrency}, per_host: {args.concurrency}, timeout_s: {args.timeout},"
        f" retries: {args.retries}, dedup: false, allow_networks: [127.0.0.0/8]}}}}\n"
    )
    command = [str(Path(sys.executable).with_name("splatclip")), "download", "--params", str(params)]
    row = timed([*command, "--store", str(folder / "store"), "--no-tracking"], url, folder)
    (manifest,) = folder.glob("store/download/*/manifest.json")
    counts = json.loads(manifest.read_text())["counts"]
    return {**row, "ok": counts["ok"], "reasons": counts["reasons"], "accounted": counts["in"]}


def plain(message: str) -> str:
    """An error's message without its numbers and further lines: one entry for all of its kind."""
    return re.sub(r"\d+ bytes read, \d+ more", "... bytes read, ... more", message.partition("\n")[0])


def img2dataset(args: argparse.Namespace, listed: Path, url: str, folder: Path) -> Row:
    options = {
        "url_list": listed,
        "input_format": "csv",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "output_folder": folder / "out",
        "image_size": 224,
        "resize_mode": "center_crop",
        "encode_quality": 95,
        "processes_count": 1,
        "thread_count": args.concurrency,
        "number_sample_per_shard": args.shard_size,
        "timeout": args.timeout,
        "retries": args.retries,
        "enable_wandb": False,
        "compute_hash": "sha256",
    }
    command = [str(args.img2dataset), *(f"--{name}={value}" for name, value in options.items())]
    row = timed(command, url, folder)
    stats = [json.loads(path.read_text()) for path in sorted(folder.glob("out/*_stats.json"))]
    reasons: Counter[str] = Counter()
    for one in stats:
        for name, number in one["status_dict"].items():
            reasons[plain(name)] += number if name != "success" else 0
    return {
        **row,
        "ok": sum(one["successes"] for one in stats),
        "reasons": dict(+reasons),
        "accounted": sum(one["count"] for one in stats),
    }


def report(journal: Journal, args: argparse.Namespace) -> str:
    rows = {
        tool: [row for row in journal.rows() if row["key"]["tool"] == tool]
        for tool in ("splatclip", "img2dataset", "splatclip, endless ones too")
    }
    lines = [
        [
            tool,
            f"{median(args.count / row['wall_s'] for row in found):.0f}",
            f"{median(row['wall_s'] for row in found):.1f}",
            f"{median(row['cpu_s'] for row in found):.1f}",
            f"{max(row['memory_mib'] for row in found):.0f}",
            found[0]["ok"],
            found[0]["accounted"],
            "; ".join(f"{name} {number}" for name, number in sorted(found[0]["reasons"].items())),
        ]
        for tool, found in rows.items()
        if found
    ]
    pairs = [b["wall_s"] / a["wall_s"] for a, b in zip(rows["splatclip"], rows["img2dataset"], strict=False)]
    parts = ["# Fetching a list of URLs", "\n".join(f"- {line}" for line in journal.notes())]
    expected = [sum(good for _, good in addresses(args.count, 1, kinds)) for kinds in (BAD, ENDLESS)]
    parts.append(
        f"{args.count} addresses of one host, of which {expected[0]} lead to a picture ({expected[1]} in the list with"
        f" endless and dripping answers); {args.concurrency} requests at a time, {args.timeout:g} s for each try,"
        f" {args.retries} retries. Medians over the repeats; the largest memory."
    )
    parts.append(
        table(["", "addresses/s", "wall, s", "processor, s", "MiB", "pictures", "accounted for", "not ok"], lines)
    )
    if pairs:
        parts.append(f"splatclip is {median(pairs):.2f} times as fast (median of pairs in turn).")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="webdataset tars of JPEGs")
    parser.add_argument("--img2dataset", type=Path, help="its executable; left out where none is given")
    parser.add_argument("--count", type=int, default=2000, help="addresses (default 2000)")
    parser.add_argument("--concurrency", type=int, default=64, help="requests at a time (default 64)")
    parser.add_argument("--timeout", type=int, default=5, help="seconds a try (default 5)")
    parser.add_argument("--retries", type=int, default=1, help="further tries (default 1)")
    parser.add_argument("--shard-size", type=int, default=500, help="samples a shard (default 500)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of both (default 3)")
    parser.add_argument("--out", type=Path, default=RESULTS / "downloading", help="OUT.json and OUT.md")
    args = parser.parse_args()
    names = ("count", "concurrency", "timeout", "retries", "shard_size")
    origin: Row = {
        "hardware": f"{processor()}, {os.cpu_count()} cores, server beside the clients",
        "build": module_digest(),
        "settings": ", ".join(f"{name} {getattr(args, name)}" for name in names),
    }
    journal, console = Journal(args.out.with_suffix(".json"), origin), Console(stderr=True)
    tools = {"splatclip": ours} | ({"img2dataset": img2dataset} if args.img2dataset else {})
    with server(args.images) as (url, number), tempfile.TemporaryDirectory(prefix="splatclip-") as place:
        lists = {}
        for name, kinds in (("bad", BAD), ("endless", ENDLESS)):
            lists[name] = Path(place) / f"{name}.csv"
            rows = addresses(args.count, number, kinds)
            with lists[name].open("w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["url", "caption"])
                writer.writerows([url + path, f"picture {row}"] for row, (path, _) in enumerate(rows))
        runs = [(tool, run, lists["bad"]) for tool, run in tools.items()]
        runs.append(("splatclip, endless ones too", ours, lists["endless"]))
        for repeat in range(args.repeats):
            for tool, run, listed in runs:
                folder = Path(place) / f"{tool}{repeat}"
                folder.mkdir()
                row = journal.once({"tool": tool, "repeat": repeat}, partial(run, args, listed, url, folder))
                shutil.rmtree(folder)
                console.print(f"{tool}: {args.count / row['wall_s']:.0f} addresses/s, {row['ok']} pictures")
                journal.report(lambda: report(journal, args))


if __name__ == "__main__":
    main()
