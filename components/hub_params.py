"""Parameters of pictures that come from the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from components.fields import later, local, one_of, require

SCALES = ("small", "medium", "large", "xlarge", "datacomp_1b")
_REPO = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)


def check_repository(name: str, where: str) -> None:
    """Require a repository's name, as owner/name; some old ones have no owner."""
    require(
        bool(_REPO.fullmatch(name)) and ".." not in name and "--" not in name,
        f"{where} is {name!r}; give a dataset's name on the hub, as in owner/name",
    )


@dataclass(frozen=True, kw_only=True)
class HubParams:
    """Which files of a dataset repository, and which of their columns.

    revision: a branch, a tag or a commit; of sources `huggingface`, `datacomp` and `clip_benchmark`. What enters a
    cache key is the content found there. config, split: of a repository that has several; an empty split takes train,
    validation and test as they are, a named one is dealt like a folder. image_column, text_column, label_column: empty
    takes the usual ones; texts are one or a list of them, labels are ClassLabels.
    """

    revision: str = local("main")
    config: str = ""
    split: str = ""
    image_column: str = ""
    text_column: str = ""
    label_column: str = ""

    def __post_init__(self) -> None:
        require(
            bool(re.fullmatch(r"[\w][\w./-]*", self.revision, re.ASCII)) and ".." not in self.revision,
            f"download.hub.revision is {self.revision!r}; give a branch, a tag or a commit",
        )


@dataclass(frozen=True, kw_only=True)
class DataCompParams:
    """Which of DataComp's pools, and which of its samples.

    scale: a pool of the competition, or `datacomp_1b`, its best subset. subset: a file of uids to keep: DataComp's .npy
    of pairs of 64-bit halves, or a .txt with one of 32 hex digits a line; a path, s3:// or http(s); empty: all. What
    enters a cache key is its content.
    """

    scale: str = later("small")
    subset: str = local("")

    def __post_init__(self) -> None:
        one_of("download.datacomp.scale", self.scale, SCALES)
        require(
            not self.subset or self.subset.endswith((".npy", ".txt")),
            f"download.datacomp.subset is {self.subset!r}; give a .npy of DataComp's (u8,u8) or a .txt of uids",
        )

    @property
    def repository(self) -> str:
        """The repository of its metadata."""
        prefix = "" if self.scale == "datacomp_1b" else "datacomp_"
        return f"mlfoundations/{prefix}{self.scale}"
