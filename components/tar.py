"""The headers of tar files, read with distrust: plain files with harmless names, or an error.

Parsed here and not by `tarfile`, which costs 85 us a sample. Nothing is ever unpacked to disk.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator

from components.errors import PermanentError

BLOCK = 512
MAX_META = 1 << 20  # bytes of a long name or pax header that is still believed
_TYPES = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "device",
    b"4": "device",
    b"6": "FIFO",
    b"S": "sparse file",
    b"7": "contiguous file",
}


def unsafe(name: str) -> str | None:
    """Why a member's name is refused, or None."""
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or re.match(r"^[A-Za-z]:", name):
        return "leads out of the shard"
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        return "holds a control character"
    return None


def _number(raw: bytes) -> int:
    if raw[0] & 0x80:  # GNU's binary form for 8 GiB and more
        return int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
    return _digits(raw.split(b"\0", 1)[0].strip() or b"0", 8)


def _digits(text: bytes, base: int) -> int:
    """A number of digits alone: int() also takes signs, with which a walk would go backwards, and underscores."""
    if not text.isdigit():
        raise ValueError(f"{text[:20]!r} is no number")
    return int(text, base)


def _pax(data: bytes) -> dict[str, str]:
    """Path and size of a pax header, where it gives them: lines of LENGTH NAME=VALUE, LENGTH counting all of it."""
    values, at = {}, 0
    while at < len(data) and data[at]:  # some writers fill up with zeros
        blank = data.find(b" ", at, at + 8)  # a record is shorter than MAX_META
        end = at + _digits(data[at : max(blank, at)], 10)
        if not blank < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ValueError(f"a pax record of {end - at} bytes")
        name, _, value = data[blank + 1 : end - 1].partition(b"=")
        if name in {b"path", b"size"}:  # others may be bytes of any kind
            values[name.decode()] = value.decode()
        at = end
    return values


def members(data: bytes | mmap.mmap, where: str) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file in a tar.

    Raises PermanentError on links, devices, names that lead outside, and a damaged or compressed tar; `where` is named.
    """
    position, total = 0, len(data)
    long_name: str | None = None
    extra: dict[str, str] = {}
    ended = False
    while position + BLOCK <= total:
        header = data[position : position + BLOCK]
        if header == bytes(BLOCK):
            ended = True
            break
        try:
            size, checksum = _number(header[124:136]), _number(header[148:156])
            if sum(header) - sum(header[148:156]) + 8 * 32 != checksum:
                raise ValueError("checksum")
            kind = header[156:157]
            content = position + BLOCK
            if kind in {b"L", b"x", b"g"}:
                if size > MAX_META or content + size > total:
                    raise ValueError("meta data")
                meta = bytes(data[content : content + size])
                if kind == b"L":
                    long_name = meta.rstrip(b"\0").decode()
                elif kind == b"x":
                    extra = _pax(meta)
                position = content + -(-size // BLOCK) * BLOCK
                continue
            name = header[:100].split(b"\0", 1)[0].decode()
            if header[257:262] == b"ustar" and header[257:265] != b"ustar  \0":
                prefix = header[345:500].split(b"\0", 1)[0].decode()
                name = f"{prefix}/{name}" if prefix else name
            name = extra.get("path", long_name if long_name is not None else name)
            size = _digits(extra["size"].encode(), 10) if "size" in extra else size
        except ValueError as error:  # UnicodeDecodeError is one
            kind_of = (
                "compressed; unpack it"
                if header[:2] in {b"\x1f\x8b", b"BZ", b"(\xb5", b"\xfd7"}
                else "not a readable tar; replace it"
            )
            raise PermanentError(f"{where}: at byte {position} ({error}): the file is {kind_of}") from None
        long_name, extra = None, {}
        if kind in _TYPES:
            raise PermanentError(f"{where}: member {name!r} is a {_TYPES[kind]}; a shard holds plain files only")
        if reason := unsafe(name):
            raise PermanentError(f"{where}: member {name!r} {reason}; refused")
        if content + size > total:
            raise PermanentError(f"{where}: cut off inside member {name!r}; fetch the file again")
        if kind in {b"0", b"\0"} and not name.endswith("/"):
            yield name, content, size
        position = content + (-(-size // BLOCK) * BLOCK if kind != b"5" else 0)
    if not ended and position != total:
        raise PermanentError(f"{where}: cut off at byte {position}; fetch the file again")
