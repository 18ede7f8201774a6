"""A download over hostile files: nothing crashes, every file is counted with a reason, memory stays bounded."""

from __future__ import annotations

from pathlib import Path

import hostile
import pytest
from faults import Row
from measured import measured

from components.config import DownloadParams

pytestmark = pytest.mark.faults

MIB = 1 << 20
# All that the process holds at its peak, interpreter and libraries included (some 120 MiB of 150). Two of the largest
# pictures that hostile.MAX_PIXELS lets through, decoded and resized at some 20 bytes a pixel, would be 150 MiB.
BOUND = 270 * MIB


def run(tmp_path: Path, count: int, seed: int) -> tuple[dict[str, str], dict, dict[str, dict]]:
    """Kinds by name; what the download printed; rows of its tables by url."""
    import pyarrow.parquet as pq

    made = hostile.make(tmp_path / "in", count, seed)
    params = DownloadParams(
        source="folder", path=str(tmp_path / "in"), image_size=32, shard_size=40, num_train=0, num_val=5, num_test=10,
        max_bytes=hostile.MAX_BYTES, max_pixels=hostile.MAX_PIXELS,
    )  # fmt: skip
    told = measured(params, tmp_path / "store")
    tables = sorted(Path(told["url"]).glob("*/*.parquet"))
    rows = [row for table in tables for row in pq.read_table(table).to_pylist()]
    assert len({row["url"] for row in rows}) == len(rows)
    return made, told, {row["url"]: row for row in rows}


def outcome(row: dict) -> tuple[str, str]:
    reason = (row["error_message"] or "").partition(":")[0]
    return {"success": "ok", "skipped": "skipped"}.get(row["status"], "failed"), reason


def check(tmp_path: Path, count: int, seed: int, row: Row) -> None:
    made, told, rows = run(tmp_path, count, seed)
    counts = told["counts"]
    assert counts["in"] == count + len(hostile.GONE) == len(rows)
    assert counts["in"] == counts["ok"] + counts["skipped"] + counts["failed"]
    assert sum(counts["reasons"].values()) == counts["skipped"] + counts["failed"]
    for name, kind in made.items():
        found = outcome(rows[name.encode("utf-8", "replace").decode()])
        right = hostile.KINDS[kind].outcomes if kind else {("skipped", "no_caption")}
        assert found in right, (kind, name, found)
    for name in hostile.GONE:
        assert outcome(rows[name.encode("utf-8", "replace").decode()]) == ("failed", "missing")
    assert told["peak"] < BOUND, f"{told['peak'] / MIB:.0f} MiB"
    tally = f"ok {counts['ok']} + skipped {counts['skipped']} + failed {counts['failed']}"
    row("poison inputs", "download", count, seed, f"in {counts['in']} = {tally}, peak {told['peak'] / MIB:.0f} MiB")


def test_sixty_hostile_files(tmp_path: Path, fault_row: Row) -> None:
    assert len(hostile.KINDS) <= 60, "each kind is to be among them"
    check(tmp_path, 60, 0, fault_row)


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2])
def test_five_hundred_hostile_files(tmp_path: Path, seed: int, fault_row: Row) -> None:
    check(tmp_path, 500, seed, fault_row)
