"""Shards: tar headers, index files, and the texts of samples."""

from __future__ import annotations

import mmap
import random
import struct

import numpy as np

from components.records import Encoded
from components.shards import IndexedShard, Sample, read_index, read_layout, read_shard, write_shard
from components.tar import BLOCK, members, unsafe
from fuzz.checks import WHERE, folder, hold, read
from fuzz.mutators import json_changed
from fuzz.targets import by_first_byte

MAX_LEN = 1 + 24 * BLOCK
HEADER_FIELDS = [(0, 100), (124, 12), (148, 8), (156, 1), (157, 100), (257, 8), (345, 155)]
HEADER_VALUES = [
    b"\0" * 155, b"-0000002000\0", b"00000001000\0", b"\x80" + bytes(10) + b"\1", b"\xff" * 12, b"77777777777\0",
    b"x", b"g", b"L", b"5", b"2", b"0", b"1_0 ", b"../a.txt\0", b"/a.txt\0", b"a/b.JSON\0", b"./a.b.c\0", b"\xff.txt\0",
]  # fmt: skip


def _mapped(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, max(len(data), 1))
    memory[: len(data)] = data
    return memory


def tar(data: bytes) -> None:
    """Members lie within the file, one after the other, under harmless names; samples survive being written again."""
    found = read(lambda: list(members(data, WHERE)))
    if found is None:
        return
    end = 0
    for name, offset, size in found:
        hold(offset >= end and size >= 0 and offset + size <= len(data), f"{name!r} lies at {offset}, {size} bytes")
        hold(unsafe(name) is None, f"{name!r} is let through")
        end = offset + size
    if not data:
        return
    shard = read(lambda: IndexedShard(_mapped(data), None, WHERE))
    if shard is None:
        return
    fields = shard.index.fields
    samples = [
        Sample(key, {ext: bytes(shard.field(i, ext)) for ext in fields if shard.has(i, ext)})
        for i, key in enumerate(shard.keys)
    ]
    again = read_index(_mapped_index(shard), WHERE)
    hold(again.keys == shard.keys and again.fields.keys() == fields.keys(), "its index reads otherwise")
    hold(all(np.array_equal(again.fields[ext], fields[ext]) for ext in fields), "its index holds other places")
    path = folder() / "again.tar"
    if read(write_shard, path, samples, named=None) is not None:
        hold(list(read_shard(path)) == samples, "samples that were written again read otherwise")
        read_layout(path)


def _mapped_index(shard: IndexedShard) -> mmap.mmap:
    return _mapped(shard.index.to_bytes())


def index(data: bytes) -> None:
    """An index is refused, or every place in it lies within its shard."""
    found = read(lambda: read_index(_mapped(data), WHERE))
    shard = None if found is None else read(lambda: IndexedShard(_mapped(bytes(4 * BLOCK)), found, WHERE))
    if shard is None:
        return
    for ext in shard.index.fields:
        column = shard.column(ext, range(len(shard)))
        hold(len(column) == len(shard), f"{len(column)} of {len(shard)} in {ext!r}")
        for one, (_, size) in zip(column, shard.index.fields[ext].tolist(), strict=True):
            hold(
                (one is None) == (size < 0) and (one is None or len(one) == size), f"a field of {size} bytes in {ext!r}"
            )


def texts(data: bytes) -> None:
    """json, txt and cls of a sample, with NUL bytes between them (an empty part: there is none)."""
    parts = [part or None for part in data.split(b"\0")[:3]]
    parts += [None] * (3 - len(parts))
    encoded = Encoded(["a"], None, None, [tuple(parts)], np.zeros((1, 2), np.int64))
    found = read(encoded.labels, WHERE)
    if found is not None:
        captions, numbers = found
        hold(all(isinstance(text, str) and text for text in captions[0]), f"captions {captions!r}")
        np.array(numbers, np.int64)


def run(data: bytes) -> None:
    """By its first byte a tar, an index or texts."""
    by_first_byte(data, {b"T": tar, b"I": index, b"X": texts})


def repaired(data: bytes) -> bytes:
    """The same with the right checksum in each header that is reached, and blocks of whole length."""
    if data[:1] != b"T":
        return data
    whole = bytearray(data[1:] + bytes(-(len(data) - 1) % BLOCK))
    at = 0
    while at + BLOCK <= len(whole) and any(whole[at : at + BLOCK]):
        whole[at + 148 : at + 156] = b"        "
        struct.pack_into("8s", whole, at + 148, b"%06o\0 " % sum(whole[at : at + BLOCK]))
        try:
            size = max(0, int(bytes(whole[at + 124 : at + 136]).split(b"\0", 1)[0].strip() or b"0", 8))
        except ValueError:
            break
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return b"T" + bytes(whole)


def changed(data: bytes, rng: random.Random) -> bytes:
    """One value of an index or a sample's json changed; of a tar one field of a header, with the right checksum."""
    if data[:1] == b"I":
        return b"I" + json_changed(data[1:], rng)
    if data[:1] == b"X":
        about, *rest = data[1:].split(b"\0")
        return b"X" + b"\0".join([json_changed(about, rng), *rest])
    whole = bytearray(data)
    if len(whole) <= BLOCK:
        return data
    at = 1 + BLOCK * rng.randrange((len(whole) - 1) // BLOCK)
    start, length = rng.choice(HEADER_FIELDS)
    value = rng.choice(HEADER_VALUES)[:length]
    whole[at + start : at + start + len(value)] = value
    return repaired(bytes(whole))
