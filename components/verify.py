"""Reading back all that finished outputs hold, against their manifests and what these were made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from components.errors import PermanentError
from components.findings import DAMAGE, Finding
from components.lineage import Lineage
from components.manifest import MANIFEST
from components.outputs import Output, find_outputs, open_place
from components.progress import progress
from components.verify_output import OutputCheck


@dataclass(frozen=True)
class Read:
    """An output that was checked: its path below the place, and the files and bytes that were read."""

    path: str
    files: int
    bytes: int


@dataclass
class Verified:
    """What a check came to. outside: files that belong to no output; lineage: lines of the tree of inputs."""

    prefix: str
    outside: int
    outputs: list[Read] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    lineage: list[str] = field(default_factory=list)

    @property
    def damaged(self) -> int:
        """How many things are wrong."""
        return sum(finding.level == DAMAGE for finding in self.findings)

    def to_json(self) -> str:
        """For machines: the fields, and whether it is sound."""
        return json.dumps({**asdict(self), "sound": not self.damaged}, indent=1, sort_keys=True, ensure_ascii=False)

    def lines(self) -> Iterator[str]:
        """For people: each finding, the tree of inputs, a summary."""
        yield from map(str, self.findings)
        yield from self.lineage
        files, size = sum(read.files for read in self.outputs), sum(read.bytes for read in self.outputs)
        outside = f"; {self.outside:,} files belong to no output and were not looked at" if self.outside else ""
        yield (
            f"{self.prefix}: {'DAMAGED' if self.damaged else 'sound'}: {len(self.outputs):,} outputs, {files:,} files, "
            f"{size:,} bytes read; {self.damaged:,} damaged, {len(self.findings) - self.damaged:,} warnings{outside}"
        )


def verify(prefix: str) -> Verified:
    """Check an output, a stage's folder or a whole store, one file after another.

    Raises UsageError for an address that is none, PermanentError where no finished output lies there or the store
    refuses, TransientError where it is away.
    """
    top = open_place(prefix)
    outputs, outside = find_outputs(top)
    if not any(output.finished for output in outputs):
        begun = f"{len(outputs):,} begun and not finished: run their stages again" if outputs else "give another prefix"
        raise PermanentError(f"{top.url}: no finished output lies there (none has a {MANIFEST}); {begun}")
    result, lineage = Verified(top.url, outside), Lineage()
    total = sum(output.num_files for output in outputs if output.finished)
    with progress("verify", total=total, unit="files") as bar:
        for output in outputs:
            if not output.finished:
                result.findings.append(_unfinished(output))
                continue
            before, check = bar.done, OutputCheck(output, bar)
            result.findings += check.findings(lineage)
            result.outputs.append(Read(output.path, check.files, check.bytes))
            bar.advance(max(0, output.num_files - (bar.done - before)))  # those that no manifest names
    result.findings += lineage.trace()
    result.lineage = list(lineage.tree())
    return result


def _unfinished(output: Output) -> Finding:
    what = f"not finished: {output.num_files:,} files and no {MANIFEST}"
    remedy = "run its stage again to finish it; `splatclip gc --unfinished` drops it"
    return Finding.warning(output.store.url, what, remedy)
