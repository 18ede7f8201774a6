"""Source `datacomp`: DataComp's pools, from the metadata that lies on the hub, all of it or a subset by uid."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from components.config import DownloadParams
from components.download.fetch import Tree, open_tree
from components.download.url_table import CARRIED
from components.download.urls import UrlSource
from components.errors import PermanentError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from components.download.sources import Ref

COLUMNS = ("clip_b32_similarity_score", "clip_l14_similarity_score", "face_bboxes")
SUBSETS = (".npy", ".txt")
HALVES = np.dtype("u8,u8")  # a uid of 128 bits as two halves, the upper one first
Pairs = NDArray[np.uint64]  # [n, 2]


class DataCompSource(UrlSource):
    """Source `urls` over DataComp's metadata, a table in memory at a time where they are large.

    Of a subset only its rows are there at all; uids that the metadata lack are an error only where it has none.
    """

    tables = (".parquet",)
    carried = (*CARRIED, *COLUMNS)

    def __init__(self, tree: Tree, params: DownloadParams) -> None:
        super().__init__(tree, params)
        self._subset: Pairs | None = None
        self._any = False  # of the subset's uids is there
        if params.datacomp.subset:
            self._subset, digest = read_subset(params.datacomp.subset)
            self.fingerprint = hashlib.sha256(f"{self.fingerprint}\n{digest}\n".encode()).hexdigest()

    def _read(self, name: str) -> pa.Table:
        """See UrlSource."""
        table = super()._read(name)
        if self._subset is None or not table.num_rows:  # of one without rows its reader gives no columns
            return table
        where = f"{self._tree.url}/{name}"
        if "uid" not in table.column_names:
            raise PermanentError(f"{where}: no column 'uid', which download.datacomp.subset goes by")
        mine = contained(pairs_of(table["uid"].to_pylist(), where), self._subset)
        self._any |= bool(mine.any())
        return table.filter(mine)

    def _list(self) -> Sequence[Ref]:
        """See Source."""
        if self._subset is not None and not len(self._rows) and not self._any:
            raise PermanentError(
                f"download.datacomp.subset {self._params.datacomp.subset!r}: none of its {len(self._subset)} uids is "
                f"in {self._tree.url}; is it a subset of this scale?"
            )
        return super()._list()


def pairs_of(uids: Sequence[str | None], where: str) -> Pairs:
    """Pairs [n, 2] of uids of 32 hex digits. Raises PermanentError naming the first row that has none."""
    try:
        data = bytes.fromhex("".join(uid or "" for uid in uids))
    except ValueError:
        data = b""
    if len(data) != 16 * len(uids) or any(len(uid or "") != 32 for uid in uids):
        for row, uid in enumerate(uids, start=1):
            if len(uid or "") != 32 or set(uid or "") - set("0123456789abcdefABCDEF"):
                raise PermanentError(f"{where}, row {row}: {str(uid)[:40]!r} is no uid of 32 hex digits")
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)


def read_subset(url: str) -> tuple[Pairs, str]:
    """The uids of a subset file [n, 2], sorted and each once, and their sha256. Raises UsageError, PermanentError."""
    tree = open_tree(url, SUBSETS)
    try:
        names = tree.names()
        if len(names) != 1 or not names[0].endswith(SUBSETS):
            there = ", ".join(names)[:200] or "none"
            raise UsageError(
                f"download.datacomp.subset {url!r} is {len(names)} files ({there}); give one .npy or .txt file"
            )
        (name,) = names
        path = tree.path(name)
        pairs = _of_text(path, url) if name.endswith(".txt") else _of_array(path, url)
    finally:
        tree.close()
    if not len(pairs):
        raise PermanentError(f"download.datacomp.subset {url!r} holds no uid")
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    pairs = pairs[np.concatenate([[True], (pairs[1:] != pairs[:-1]).any(axis=1)])]
    return pairs, hashlib.sha256(np.ascontiguousarray(pairs, "<u8").tobytes()).hexdigest()


def _of_text(path: Path, url: str) -> Pairs:
    lines = path.read_text("ascii", "replace").split()
    return pairs_of(lines, f"download.datacomp.subset {url!r}")


def _of_array(path: Path, url: str) -> Pairs:
    try:
        with path.open("rb") as stream:
            if stream.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:  # np.load would also take archives of several
                raise ValueError("it begins otherwise")
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise PermanentError(f"download.datacomp.subset {url!r}: not a .npy file: {error}") from None
    if found.dtype != HALVES or found.ndim != 1:
        raise PermanentError(
            f"download.datacomp.subset {url!r}: an array of {found.dtype} and shape {found.shape}; expected pairs "
            "(u8,u8), as DataComp's baselines.py writes them"
        )
    return np.stack([found["f0"], found["f1"]], axis=1)


def contained(pairs: Pairs, subset: Pairs) -> NDArray[np.bool_]:
    """Which of the pairs [n, 2] are in a subset [m, 2] that is sorted by upper, then lower half."""
    first = np.searchsorted(subset[:, 0], pairs[:, 0], "left")
    last = np.searchsorted(subset[:, 0], pairs[:, 0], "right")
    found = np.zeros(len(pairs), bool)
    for step in range(int((last - first).max(initial=0))):  # 1, but for uids that share their upper half
        here = np.minimum(first + step, len(subset) - 1)
        found |= (first + step < last) & (subset[here, 1] == pairs[:, 1])
    return found
