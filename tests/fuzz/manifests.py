"""What stages say of themselves: manifests, entries, journals for MLflow, decisions in the registry."""

from __future__ import annotations

import json
import random
from contextlib import suppress

from components.entries import FileEntry, Manifest, ShardEntry, count, done_bytes, file_entry, read_entry, shard_entry
from components.registry_line import Decision
from components.tracking_journal import FOLDER, read_journal
from fuzz.checks import WHERE, folder, hold, read, written
from fuzz.mutators import json_changed, line_changed
from fuzz.targets import by_first_byte

MAX_LEN = 8192


def manifest(data: bytes) -> None:
    """manifest.json: what is read can be written, and reads the same."""
    found = read(Manifest.from_bytes, data, WHERE)
    if found is None:
        return
    again = found.to_bytes()
    hold(Manifest.from_bytes(again, WHERE) == found and found.sha256, "a manifest reads otherwise when written again")
    for name in found.splits():
        found.split(name)


def shard(data: bytes) -> None:
    """A shard's _done entry."""
    found = read(read_entry, data, WHERE)
    if found is not None:
        hold(isinstance(found, ShardEntry), "no entry")
        hold(read_entry(done_bytes(found), WHERE) == found, "an entry reads otherwise when written again")


def file(data: bytes) -> None:
    """A file's _done entry."""
    found = read(file_entry, data, WHERE)
    hold(found is None or isinstance(found, FileEntry), "no entry")


def journal(data: bytes) -> None:
    """A journal's lines."""
    written(f"store/{FOLDER}/{WHERE}.jsonl", data)
    found = read(read_journal, str(folder() / "store"), f"{FOLDER}/{WHERE}.jsonl")
    if found is not None:
        journal, _ = found
        hold(all(isinstance(op["op"], str) for op in journal.ops), "an operation without a name")
        hold([json.loads(line) for line in journal.to_bytes().splitlines()][1:] == journal.ops, "written otherwise")


def decision(data: bytes) -> None:
    """The registry's tag of a decision by hand."""
    found = read(Decision.from_json, data.decode("utf-8", "replace"), WHERE)
    if found is not None:
        hold(Decision.from_json(found.to_json(), WHERE).after == found.after, "written otherwise")


def run(data: bytes) -> None:
    """By its first byte one of them."""
    by_first_byte(data, {b"M": manifest, b"S": shard, b"F": file, b"J": journal, b"D": decision})


def changed(data: bytes, rng: random.Random) -> bytes:
    """One value changed; of a manifest often with counts that add up again, so that what lies behind is reached."""
    text = line_changed(data[1:], rng) if data[:1] == b"J" else json_changed(data[1:], rng)
    if data[:1] == b"M" and rng.random() < 0.7:
        with suppress(Exception):  # what cannot be mended stays as it is
            values = json.loads(text)
            values["counts"] = count([shard_entry(one) for one in values["shards"]])
            values["path"] = f"{values['stage']}/{values['key']}"
            text = json.dumps(values).encode()
    return data[:1] + text
