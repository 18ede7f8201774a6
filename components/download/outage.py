"""Whether a shard's failures are an outage on this machine's side: then it is not kept and its rows are asked again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

from components.download.sources import NAME_UNANSWERED, OWN_FAULTS, UNASKED
from components.download.table import Row
from components.errors import TransientError
from components.manifest import SampleNote

UNREACHED = {*OWN_FAULTS, NAME_UNANSWERED, "timeout", "no_connection", "host_down"}
_SILENT = {*UNREACHED, *UNASKED, "no_such_host"}  # of which a host itself said nothing
SEVERAL = 3  # hosts: one or two may be at fault themselves, for as long as a list names them
SHARE = 50  # of the rows that were asked one in so many may end so and the shard is kept: a few hosts always do
# Rows that may be lost by name servers although some names are answered, by a cache: so many, and one in so many.
MANY, NAMES_SHARE = 10, 10
_MENDS = {
    NAME_UNANSWERED: "see to this machine's name servers, or take the rows out if those of their hosts are gone",
    "no_name_server": "see to this machine's name servers",
    "no_network": "see to this machine's network",
    "too_many_files": "raise the limit on open files (ulimit -n) or lower download.urls.concurrency",
}


def check_outage(index: int, rows: Sequence[Row], notes: Sequence[SampleNote]) -> None:
    """TransientError where an outage on this side has lost rows of a shard: they are not to stay so for ever.

    index: the shard's; rows: a line of the table for each sample; notes: those that are not ok. An outage is

    - any row that met too many open files;
    - no network or no name server for more than one in SHARE of the rows that were asked, of SEVERAL hosts, or SEVERAL
      of a host that answered another row: a broken delegation, or a host with IPv6 alone, fails by itself and every
      time, also as what another host's redirect leads to;
    - no answer for the names of SEVERAL hosts, of MANY rows and more than one in NAMES_SHARE of those that were asked,
      though others' were answered;
    - all rows that were asked, if all met these faults, or if of SEVERAL hosts or more none could be reached.
    """
    known = {note.key: note for note in notes}
    unreached = [note for note in notes if note.reason in UNREACHED]
    if not unreached:
        return
    hosts = {row["key"]: _host(str(row["url"] or "")) for row in rows}
    asked = len(rows) - sum(note.reason in UNASKED for note in notes)
    own = [note for note in unreached if note.reason in OWN_FAULTS]
    lost = Counter(hosts[note.key] for note in own)
    spoke = {host for key, host in hosts.items() if key not in known or known[key].reason not in _SILENT}
    if (
        any(note.reason == "too_many_files" for note in own)
        or len(own) == asked
        or (len(own) * SHARE > asked and (len(lost) >= SEVERAL or any(lost[host] >= SEVERAL for host in spoke)))
    ):
        _stop(index, asked, own)
    away = own + [note for note in unreached if note.reason == NAME_UNANSWERED]
    if len(away) >= MANY and len(away) * NAMES_SHARE > asked and len({hosts[note.key] for note in away}) >= SEVERAL:
        _stop(index, asked, away)
    if len(unreached) == asked and len({hosts[note.key] for note in unreached}) >= SEVERAL:
        _stop(index, asked, unreached)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _stop(index: int, asked: int, lost: Sequence[SampleNote]) -> None:
    reason, count = Counter(note.reason for note in lost).most_common(1)[0]
    detail = next(note.detail for note in lost if note.reason == reason)
    mend = _MENDS.get(reason, "see to this machine's network, or take the rows out if all of their hosts are gone")
    others = "" if count == len(lost) else f", {len(lost) - count} for others like it"
    raise TransientError(
        f"{len(lost)} of the {asked} addresses of shard {index} could not be reached from this machine: "
        f"{count} for {reason} ({detail}){others}; the shard is not kept, those before it are. {mend[0].upper()}"
        f"{mend[1:]}, and run the same command again"
    )
