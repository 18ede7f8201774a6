"""What each output was made from, back to the source: the inputs that manifests name, looked up and compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from components.entries import Manifest
from components.errors import PermanentError, UsageError
from components.findings import Finding
from components.outputs import read_strictly, root_of
from components.store import Store, check_name, open_store

SHORT = 8  # hex digits of a hash in the tree


@dataclass(frozen=True)
class Node:
    """An output as its manifest tells it: where its store is, its path there, the manifest's sum and its inputs."""

    root: str
    path: str
    sha256: str
    inputs: dict[str, dict[str, str]]

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self.root.rstrip('/')}/{self.path}"

    @classmethod
    def of(cls, manifest: Manifest, url: str) -> Node:
        """The node of an output that lies in its place."""
        return cls(root_of(manifest, url), manifest.path, manifest.sha256, manifest.inputs)


class Lineage:
    """Outputs by address. `add` those that were read; `trace` follows their inputs, and reads what is not there yet."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._state: dict[tuple[str, str], str] = {}  # (address, input) -> what the tree says of it, "" if sound

    def add(self, node: Node) -> None:
        """Add an output."""
        self.nodes[node.url] = node

    def trace(self) -> Iterator[Finding]:
        """Everything that is wrong with inputs: missing, damaged, or other than what was used."""
        waiting = sorted(self.nodes)
        stores: dict[str, Store] = {}
        while waiting:
            node = self.nodes[waiting.pop(0)]
            for name, given in node.inputs.items():
                known = set(self.nodes)
                finding, state = self._look(node, name, given, stores)
                self._state[node.url, name] = state
                if finding:
                    yield finding
                waiting += sorted(set(self.nodes) - known)

    def _look(
        self, node: Node, name: str, given: dict[str, str], stores: dict[str, Store]
    ) -> tuple[Finding | None, str]:
        again = f"run {node.path.partition('/')[0]} again"
        try:
            path, sha256 = check_name(str(given["path"])), str(given["sha256"])
        except (KeyError, TypeError, UsageError) as error:
            return Finding.damage(
                node.url, f"its input {name!r} is not a path and a sha256 ({error})", again
            ), "damaged"
        url = f"{node.root.rstrip('/')}/{path}"
        if url not in self.nodes:
            if node.root not in stores:
                stores[node.root] = open_store(node.root)
            try:
                read = read_strictly(stores[node.root].sub(path))
            except PermanentError as error:
                return Finding.damage(node.url, f"its input {name!r} cannot be read: {error}", again), "damaged"
            if read is None:
                remedy = "look for it in another store, if it is wanted"
                return Finding.warning(node.url, f"its input {name!r}, {path}, is not in this store", remedy), "missing"
            if read[0].path != path:
                what = f"its input {name!r}, {path}, holds the manifest of {read[0].path}"
                return Finding.damage(node.url, what, f"put the right one back, or {again}"), "damaged"
            self.add(Node.of(read[0], url))
        found = self.nodes[url].sha256
        if found == sha256:
            return None, ""
        what = f"was made from {name} {path} with a manifest of sha256 {sha256}, but that is {found} now"
        return Finding.damage(node.url, what, f"put the former one back, or {again}"), "CHANGED"

    def tree(self) -> Iterator[str]:
        """Lines: what nothing else here was made from, and below each output what it was made from. After `trace`."""
        used = {self._input_url(node, name) for node in self.nodes.values() for name in node.inputs}
        shown: set[str] = set()
        for url in sorted(set(self.nodes) - used) or sorted(self.nodes):
            yield from self._branch(url, "", 0, shown)

    @staticmethod
    def _input_url(node: Node, name: str) -> str:
        given = node.inputs[name]
        return f"{node.root.rstrip('/')}/{given.get('path', '')}" if isinstance(given, dict) else ""

    def _branch(self, url: str, name: str, depth: int, shown: set[str]) -> Iterator[str]:
        node = self.nodes[url]
        head = f"{'  ' * depth}{name + ': ' if name else ''}{short(node.path)} {node.sha256[:SHORT]}"
        if url in shown and node.inputs:
            yield f"{head} (above)"
            return
        shown.add(url)
        yield head
        for item in node.inputs:
            below, state = self._input_url(node, item), self._state.get((url, item), "")
            if state in {"missing", "damaged"} or below not in self.nodes:
                path = str(node.inputs[item].get("path", "?")) if isinstance(node.inputs[item], dict) else "?"
                said = "not in this store" if state == "missing" else state
                yield f"{'  ' * (depth + 1)}{item}: {short(path)} {said}"
            else:
                lines = list(self._branch(below, item, depth + 1, shown))
                yield f"{lines[0]} {state}".rstrip()
                yield from lines[1:]


def short(path: str) -> str:
    """A path of <stage>/<key> with the key cut short."""
    stage, _, key = path.partition("/")
    return f"{stage}/{key[:SHORT]}"
