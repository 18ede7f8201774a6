"""benchmarks/records.py: rows are kept, found again, and shared by several processes."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import records
from records import Journal


def test_rows_are_kept_and_found_again(tmp_path: Path) -> None:
    path, made = tmp_path / "rows.json", []

    def measure() -> dict[str, Any]:
        made.append(1)
        return {"value": len(made)}

    first = Journal(path, {"build": "a"})
    assert first.once({"N": 1}, measure)["value"] == 1
    again = Journal(path, {"build": "a"})
    assert again.once({"N": 1}, measure)["value"] == 1
    assert again.once({"N": 2}, measure)["value"] == 2
    assert any("1 of 2 rows are from an earlier call" in note for note in again.notes())
    other = Journal(path, {"build": "b"})
    assert other.once({"N": 1}, measure)["value"] == 3
    assert any("2 rows of other builds" in note for note in other.notes())
    rows = json.loads(path.read_text())
    assert [row["value"] for row in rows] == [1, 2, 3]
    assert all({"date", "commit", "command"} <= row["made"].keys() for row in rows)


def test_several_write_to_one_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    one, two = Journal(path, {"build": "a"}), Journal(path, {"build": "a"})
    one.once({"N": 1}, lambda: {"value": 1})
    two.once({"N": 2}, lambda: {"value": 2})
    one.once({"N": 3}, lambda: {"value": 3})
    assert two.once({"N": 3}, lambda: {"value": 4})["value"] == 3, "who came first"
    assert [row["value"] for row in json.loads(path.read_text())] == [1, 2, 3]

    def write(name: int) -> None:
        journal = Journal(path, {"build": "b"})
        for number in range(10):
            journal.once({"by": name, "number": number}, lambda: {"value": 0})

    monkeypatch.setattr(records, "commit", lambda: "abc")
    with ThreadPoolExecutor(3) as pool:  # the lock is one of open files: threads wait for each other as processes do
        list(pool.map(write, range(3)))
    assert len(json.loads(path.read_text())) == 3 + 3 * 10


def test_a_report_tells_of_the_rows_of_all_processes(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    one, two = Journal(path, {"build": "a"}), Journal(path, {"build": "a"})
    one.once({"N": 1}, lambda: {"value": 1})
    two.once({"N": 2}, lambda: {"value": 2})
    one.report(lambda: f"{[row['value'] for row in one.rows()]}")
    assert path.with_suffix(".md").read_text() == "[1, 2]"
    Journal(None, {}).report(lambda: "nowhere")

    def fails() -> str:
        raise ValueError("no table")

    with pytest.raises(ValueError, match="no table"):
        two.report(fails)
    assert path.with_suffix(".md").read_text() == "[1, 2]", "the earlier report stays"
    one.report(lambda: "the lock was given back")
    assert {file.name for file in tmp_path.iterdir()} == {"rows.json", "rows.md", "rows.lock"}
