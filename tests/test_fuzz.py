"""Every file of the fuzzers' corpus keeps what the parsers promise; the fuzzers themselves see a broken promise."""

from __future__ import annotations

import csv
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from fuzz import mutators, shards
from fuzz.checks import WHERE, Finding, read
from fuzz.run import CODEC, KEPT_BYTES, REACHED, build_codec, keep, reached
from fuzz.seeds import ALL
from fuzz.targets import NAMES, target

from components import yaml_text
from components.download.fetch import MAX_NAMES, expand
from components.download.robots import rules_of
from components.entries import Manifest, read_entry
from components.errors import PermanentError, UsageError
from components.params import load_params
from components.tar import BLOCK, members

CORPUS = ROOT / "tests" / "corpus"
RUN = ROOT / "tests" / "fuzz" / "run.py"
INPUT_S = 5.0  # of processor time; the slowest takes a tenth


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_keeps_what_parsers_promise(name: str) -> None:
    run = target(name)
    files = sorted((CORPUS / name).iterdir())
    assert len(files) > 3
    inputs = [(file.name, file.read_bytes()) for file in files]
    inputs += [(f"reached {number:04}", data) for number, data in enumerate(reached(name))]
    assert len(inputs) > len(files), "what fuzzing reached is kept"
    for what, data in inputs:
        start = time.process_time()
        run(data)
        assert time.process_time() - start < INPUT_S, what


def test_what_is_reached_is_packed_smallest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.run.ROOT", tmp_path)
    monkeypatch.setattr("fuzz.run.REACHED", tmp_path / "reached")
    folder = tmp_path / "build/fuzz/urls/corpus"
    folder.mkdir(parents=True)
    for name, data in {"b": b"22", "a": b"1", "same": b"22", "large": bytes(KEPT_BYTES)}.items():
        (folder / name).write_bytes(data)
    assert keep("urls") == 2
    assert reached("urls") == [b"1", b"22"]
    before = (tmp_path / "reached/urls.tar.gz").read_bytes()
    (folder / "b").unlink()
    assert keep("urls") == 2, "what was kept stays"
    assert (tmp_path / "reached/urls.tar.gz").read_bytes() == before


def test_the_corpus_is_small_and_each_parser_has_files() -> None:
    assert {path.name for path in CORPUS.iterdir()} - {REACHED.name} == {*NAMES, CODEC} == set(ALL)
    assert {path.name for path in REACHED.iterdir()} == {f"{name}.tar.gz" for name in ALL}
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 512 << 10


@pytest.mark.parametrize("name", ["gs2d", "shards", "manifests", "captions", "params", "images"])
def test_changed_files_keep_it_too(name: str) -> None:
    """A few hundred of the changes that fuzzing makes, from a fixed seed, without coverage to guide them."""
    run = target(name)
    module = sys.modules[f"fuzz.{name}"]
    change = getattr(module, "changed", lambda data, _: data)
    repair = getattr(module, "repaired", lambda data: data)
    rng = random.Random(7)
    files = [path.read_bytes() for path in sorted((CORPUS / name).iterdir()) if path.stat().st_size < 8192]
    for _ in range(150):
        data = bytearray(change(rng.choice(files), rng)) or bytearray(b"x")
        for _ in range(rng.randrange(3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        run(repair(bytes(data)))


def test_a_broken_promise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar reader that believes a size, an index reader that lets an error through: both are found by the corpus."""
    run = target("shards")
    plain = (CORPUS / "shards" / "plain.tar").read_bytes()
    monkeypatch.setattr(shards, "members", lambda data, where: iter([("a.txt", 0, len(data) + 1)]))
    with pytest.raises(Finding, match=r"lies at 0"):
        run(plain)
    monkeypatch.setattr(shards, "members", lambda data, where: iter([("../a.txt", 0, 1)]))
    with pytest.raises(Finding, match="let through"):
        run(plain)
    monkeypatch.undo()

    def nameless(data: object, where: str) -> object:
        raise PermanentError("something is wrong")

    with pytest.raises(Finding, match="does not say where"):
        read(nameless, b"", WHERE)
    with pytest.raises(KeyError):
        read(lambda: {}["x"])


def test_a_finding_is_replayed_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"Rnothing")
    done = subprocess.run([sys.executable, RUN, "urls", file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{file}: holds\n"), done.stderr


def tar_header(**fields: bytes) -> bytes:
    plain = bytearray((CORPUS / "shards" / "plain.tar").read_bytes()[1 : 1 + BLOCK])
    places = {"size": (124, 12), "kind": (156, 1)}
    for name, value in fields.items():
        at, length = places[name]
        plain[at : at + length] = value.ljust(length, b"\0")
    return shards.repaired(b"T" + bytes(plain))[1:]


@pytest.mark.parametrize("size", [b"-0000001000", b"-1", b"0_10", b"+10", b"8"])
def test_a_size_is_digits_and_nothing_else(size: bytes) -> None:
    """Below 0 the walk went backwards, for ever."""
    for kind in (b"0", b"L", b"x", b"5"):
        with pytest.raises(PermanentError, match=r"x\.tar: at byte 0"):
            list(members(tar_header(size=size, kind=kind) + bytes(2 * BLOCK), "x.tar"))


@pytest.mark.parametrize("record", [b"0 a=b\n", b"-1 a=b\n", b"999 a=b\n", b"6a=b\n", b" a=b\n", b"\n"])
def test_pax_records_of_a_wrong_length_are_refused(record: bytes) -> None:
    data = tar_header(size=b"%o" % len(record), kind=b"x") + record.ljust(BLOCK, b"\0") + bytes(2 * BLOCK)
    with pytest.raises(PermanentError, match=r"x\.tar: at byte 0"):
        list(members(data, "x.tar"))


def test_a_megabyte_of_pax_records_is_read_once() -> None:
    """They were copied for each of them: minutes."""
    records = b"5 a=\n" * 200_000
    data = tar_header(size=b"%o" % len(records), kind=b"x") + records + bytes(-len(records) % BLOCK) + bytes(2 * BLOCK)
    start = time.process_time()
    assert list(members(data, "x.tar")) == []
    assert time.process_time() - start < 5


def test_robots_txt_that_breaks_urllib_still_has_its_rules() -> None:
    rules = rules_of("User-agent: *\nDisallow: //[\nCrawl-delay: \u00b2\nRequest-rate: \u00b2/1\nDisallow: /b\n")
    assert rules.can_fetch("x", "http://a.example/a")
    assert not rules.can_fetch("x", "http://a.example/b")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("{0..9}" * 9, "more than"), ("{0..%s}" % ("9" * 5000), "more than"), ("{5..1}", "is empty")],
)
def test_ranges_are_bounded(pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand(f"http://a.example/{pattern}.tar")
    assert expand("{00..11}/{1..2}.tar")[:3] == ["00/1.tar", "00/2.tar", "01/1.tar"]
    assert len(expand("{00001..99999}.tar")) == MAX_NAMES - 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "line 2: an alias within an anchored value"),
        ("a: &a {b: *a}", "line 1: an alias within"),
        ("a: &a 1\nb: [" + ", ".join(["*a"] * 101) + "]", "more than 100 aliases"),
        ("[" * 30, "nested more than 20 deep"),
        ("a: !!python/object/apply:os.system [x]", "a type by tag"),
        ("a: 2024-13-45", "month must be in"),
        ("x" * ((1 << 20) + 1), "characters"),
        ("a: [", "not valid YAML"),
    ],
)
def test_yaml_that_grows_or_makes_objects_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        yaml_text.parse(text, "here.yaml")
    assert "here.yaml" in str(caught.value)


def test_aliases_of_plain_values_still_work(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("download: &d {num_test: 10}\ndownload_eval: *d\nsplat_fit: {num_gaussians: 7}\n")
    assert load_params(path).download_eval.num_test == 10


def test_a_number_that_python_cannot_write_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for number in ("0x" + "f" * 5000, str(1 << 64)):
        path.write_text(f"download: {{seed: {number}}}\n")
        with pytest.raises(UsageError, match=r"download\.seed is "):
            load_params(path)


@pytest.mark.parametrize("limit", [1 << 17, 1 << 24])  # the process's own, which reading lists of addresses raises
def test_a_first_line_without_end_is_refused_briefly_and_by_name(limit: int) -> None:
    run = target("captions")
    before = csv.field_size_limit(limit)
    try:
        run(b"C" + b"a" * 140_000)
        run(b"Cimage,caption," + b"a" * 140_000)
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(("field", "odd"), [("ok", -1), ("ok", 0.5), ("bytes", -3), ("skipped", {"x": -1})])
def test_counts_of_a_manifest_are_counts(field: str, odd: object) -> None:
    import json

    values = json.loads((CORPUS / "manifests" / "manifest.json").read_bytes()[1:])
    values["shards"][0][field] = odd
    with pytest.raises(PermanentError, match=r"m\.json: not a valid manifest"):
        Manifest.from_bytes(json.dumps(values).encode(), "m.json")


@pytest.mark.parametrize("name", ["manifest.json", "entry.json"])
def test_records_are_refused_deeper_than_they_could_be_written(name: str) -> None:
    import json

    values = json.loads((CORPUS / "manifests" / "manifest.json").read_bytes()[1:])
    values = values if name == "manifest.json" else values["shards"][0]
    values["metrics"] = {"psnr_db": json.loads("[" * 900 + "]" * 900)}
    read_it = Manifest.from_bytes if name == "manifest.json" else read_entry
    with pytest.raises(PermanentError, match=rf"{name}: not a valid .* nested more than 50 deep"):
        read_it(json.dumps(values).encode(), name)


def test_json_is_changed_by_structure() -> None:
    rng = random.Random(0)
    found = {mutators.json_changed(b'{"a": [1, 2]}', rng) for _ in range(200)}
    assert len(found) > 50
    assert mutators.json_changed(b"{", rng) == b"{"


@pytest.mark.full
def test_the_native_corpus_under_sanitizers(tmp_path: Path) -> None:
    program = build_codec(tmp_path, fuzzer=False)
    files = sorted((CORPUS / CODEC).iterdir())
    for number, data in enumerate(reached(CODEC)):
        files.append(tmp_path / f"reached-{number:04}")
        files[-1].write_bytes(data)
    done = subprocess.run([program, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("holds") == len(files)
