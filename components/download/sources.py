"""What a source of pictures offers to the stage, and how its pictures are dealt to the splits."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from components.config import DownloadParams
from components.errors import SplatClipError
from components.images import ImageError, Pixels

if TYPE_CHECKING:
    from components.download.fetch import Tree
    from components.store import Store

SPLITS = ("train", "val", "test")
CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
OWN_FAULTS = ("no_name_server", "no_network", "too_many_files")
"""Reasons that say nothing of an address: it is this machine that cannot reach it."""
NAME_UNANSWERED = "name_unanswered"
"""The reason of an address whose host's name is not answered while others are."""
UNASKED = ("bad_url", "blocked_address", "no_caption")
"""Reasons that are known of an address without asking anybody."""
DEFAULT_TEMPLATES = ("a photo of a {c}.",)


def written(text: str) -> str:
    """A text that UTF-8 can write: halves of surrogate pairs (from JSON, from names of files) become question marks."""
    return text.encode("utf-8", "replace").decode()


class Skip(SplatClipError):
    """A sample that is left out on purpose, counted by its reason."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Ref:
    """One sample before it is read. split: "" where the source does not say; group, position: where it lies there."""

    key: str
    split: str
    group: int
    position: int


@dataclass(frozen=True)
class Raw:
    """One sample as the source has it.

    image: encoded bytes, or pixels where the source draws them itself; label: its class, -1: none; labels: its classes
    where a picture may have several or none, None elsewhere; origin: its address or its name in the source; extra:
    columns of the source's own, for the shard's table and the sample's json.
    """

    image: bytes | Pixels
    captions: tuple[str, ...] = ()
    label: int = -1
    origin: str = ""
    labels: tuple[int, ...] | None = None
    extra: Mapping[str, str | float | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "captions", tuple(map(written, self.captions)))
        object.__setattr__(self, "origin", written(self.origin))
        extra = {name: written(value) if isinstance(value, str) else value for name, value in self.extra.items()}
        object.__setattr__(self, "extra", extra)


Result = tuple[Ref, Raw, "Skip | ImageError | None"]
"""A sample as `load` gives it, or else all that is known of it but its picture, and why it is not there."""


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: which samples go in, decided before any is read."""

    index: int
    split: str
    refs: list[Ref]


class Source(ABC):
    """A source of pictures. It is a context manager; what it keeps on disk goes at the end.

    fingerprint: of all that the output depends on besides the parameters; known once the source is open.
    kind: what it says of itself, one of prompts.KINDS; empty where it says nothing.
    origin: a repository and its commit, where the pictures or their list are from one.
    left_out: what of it is not among its samples, by reason; known once they have been listed.
    """

    origin: str = ""
    left_out: Mapping[str, int] = MappingProxyType({})

    fingerprint: str = ""
    kind: str = ""
    class_names: Sequence[str] = ()
    templates: Sequence[str] = ()

    @cached_property
    def refs(self) -> Sequence[Ref]:
        """All samples in the source's order, listed when first asked for: it may take reading the whole source."""
        return self._list()

    @abstractmethod
    def _list(self) -> Sequence[Ref]:
        """List the samples. Raises PermanentError if there are none, or if what holds them is damaged."""

    @abstractmethod
    def load(self, ref: Ref) -> Raw:
        """Read one sample. Raises ImageError if it is broken or missing, Skip if it is to be left out."""

    def about(self, ref: Ref) -> Raw:
        """What is known of a sample without reading it: all but `image`, as far as it goes. For what `load` refused."""
        return Raw(b"", origin=ref.key)

    def close(self) -> None:  # noqa: B027  nothing to do for a source without files
        """Let go of files."""

    def group_name(self, group: int) -> str | None:
        """Name of the input shard that a group stands for, where there is one."""
        return None

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StreamingSource(Source):
    """A source whose samples come from far away, each in its own time."""

    @abstractmethod
    def stream(self, refs: Iterator[Ref | None]) -> AbstractContextManager[Iterator[Result | None]]:
        """Read many samples at a time, each once, in the order in which they are ready.

        refs: advanced in another thread; None: no further one may be begun now. A result of None: none was ready within
        a moment.
        """


def plain_key(text: str) -> str:
    """A key for a shard: no dot (it would end the key), no folder, nothing unprintable."""
    return re.sub(r"[^\w\-]+", "-", text).strip("-") or "sample"


def unique(refs: Sequence[Ref], group_names: Sequence[str]) -> list[Ref]:
    """The same refs with unique keys: where two groups share a key all keys gain their group's name, then a number."""
    if len({ref.key for ref in refs}) < len(refs):
        refs = [replace(ref, key=plain_key(f"{group_names[ref.group]}-{ref.key}")) for ref in refs]
    times: Counter[str] = Counter()
    taken = {ref.key for ref in refs}
    result = []
    for ref in refs:
        times[ref.key] += 1
        key = ref.key
        while times[ref.key] > 1 and key in taken:
            key = f"{ref.key}-{times[ref.key]}"
            times[ref.key] += key in taken
        taken.add(key)
        result.append(replace(ref, key=key))
    return result


def rank(seed: int, key: str) -> bytes:
    """A sort key that deals samples at random, the same way every time."""
    return hashlib.sha256(f"{seed}/{key}".encode()).digest()


def _choose(refs: list[Ref], number: int, seed: int) -> tuple[list[Ref], list[Ref]]:
    """`number` refs dealt at random, and the rest; both in the source's order."""
    if number >= len(refs):
        return refs, []
    chosen = {ref.key for ref in sorted(refs, key=lambda ref: rank(seed, ref.key))[: max(number, 0)]}
    return [ref for ref in refs if ref.key in chosen], [ref for ref in refs if ref.key not in chosen]


def deal(refs: Sequence[Ref], params: DownloadParams) -> dict[str, list[Ref]]:
    """Deal samples to train, val and test.

    Splits that the source has are kept, each down to its number; otherwise num_test, then num_val are dealt out of the
    rest, together no more than half of it, so that training is left something from small sets too. Where nothing is to
    be trained on, they may take all of it.
    """
    pools = {split: [ref for ref in refs if ref.split == split] for split in ("", *SPLITS)}
    rest = pools[""] + pools["train"]
    num_test = 0 if pools["test"] else params.num_test
    num_val = 0 if pools["val"] else params.num_val
    spare = len(rest) // 2 if params.trains else len(rest)
    if num_test + num_val > spare:
        share = spare / (num_test + num_val)
        num_test, num_val = min(num_test, -int(-num_test * share // 1)), int(num_val * share)
        num_test = min(num_test, spare - num_val)
    if pools["test"]:
        test, _ = _choose(pools["test"], params.num_test, params.seed)
    else:
        test, rest = _choose(rest, num_test, params.seed)
    if pools["val"]:
        val, _ = _choose(pools["val"], params.num_val, params.seed + 1)
    else:
        val, rest = _choose(rest, num_val, params.seed + 1)
    train = _choose(rest, params.num_train or len(rest), params.seed + 2)[0] if params.trains else []
    return {"train": train, "val": val, "test": test}


def splits_to_read(there: set[str], params: DownloadParams) -> set[str]:
    """Which of a source's own splits are dealt from: all, or for a set that is only evaluated on as few as will do."""
    if params.trains or "test" not in there:
        return there
    if params.num_val == 0:
        return {"test"}
    return {"test", "val"} if "val" in there else there


def open_source(params: DownloadParams, kept: Store | None = None) -> Source:
    """The source that the parameters name. kept: where files of evaluation sets stay once they have been fetched.

    Raises UsageError, PermanentError, or TransientError where the hub is away.
    """
    if params.source == "sample":
        from components.download.sample import SampleSource

        return SampleSource(params)
    tree = _tree(params, kept)
    try:
        source = _opened(tree, params)
        source.origin = tree.origin
        return source
    except BaseException:
        tree.close()
        raise


def _tree(params: DownloadParams, kept: Store | None) -> Tree:
    from components.download.fetch import open_tree
    from components.download.hub import HubTree

    revision = params.hub.revision
    if params.source == "huggingface":
        return HubTree(params.path, revision)
    if params.source == "datacomp" and not params.path:
        return HubTree(params.datacomp.repository, revision)
    if params.source == "clip_benchmark":
        from components.evalsets import repository

        return HubTree(repository(params.path), revision, kept=kept)
    return open_tree(params.path)


def _opened(tree: Tree, params: DownloadParams) -> Source:
    if params.source == "folder":
        from components.download.folder import FolderSource

        return FolderSource(tree, params)
    if params.source == "urls":
        from components.download.urls import UrlSource

        return UrlSource(tree, params)
    if params.source == "datacomp":
        from components.download.datacomp import DataCompSource

        return DataCompSource(tree, params)
    if params.source == "huggingface":
        from components.download.huggingface import HuggingFaceSource

        return HuggingFaceSource(tree, params)
    from components.download.webdataset import WebdatasetSource

    return WebdatasetSource(tree, params)
