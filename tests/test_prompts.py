"""Class names and templates as files give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import PermanentError
from components.manifest import Artifact, Commit
from components.prompts import DEFAULT_TEMPLATES, load_prompts, parse_class_names, parse_templates
from components.store import open_store


def image_set(folder: Path, files: dict[str, bytes]) -> Artifact:
    params = {name: data.hex() for name, data in files.items()}
    commit = Commit(open_store(str(folder)), stage="download", version=1, params=params, inputs={})
    entries = [commit.put_file(name, data) for name, data in files.items()]
    return commit.finalise(shards=[], files=entries, metrics={})


def test_names_and_templates_of_a_set(tmp_path: Path) -> None:
    files = {
        "classnames.txt": "cat\nfire truck\n".encode("utf-8-sig"),
        "zeroshot_classification_templates.txt": b"a photo of a {c}.\r\n\r\n{c}\n",
    }
    prompts = load_prompts(image_set(tmp_path, files))
    assert prompts is not None
    assert prompts.class_names == ("cat", "fire truck")
    assert prompts.templates == ("a photo of a {c}.", "{c}")
    assert not prompts.default_templates
    assert prompts.texts() == [["a photo of a cat.", "cat"], ["a photo of a fire truck.", "fire truck"]]


def test_default_templates_where_the_set_has_none(tmp_path: Path) -> None:
    prompts = load_prompts(image_set(tmp_path, {"classnames.txt": b"cat\ndog"}))
    assert prompts is not None
    assert prompts.default_templates
    assert prompts.templates == DEFAULT_TEMPLATES
    assert parse_templates("\n".join(DEFAULT_TEMPLATES).encode(), "here") == DEFAULT_TEMPLATES
    assert load_prompts(image_set(tmp_path, {})) is None


def test_a_name_that_comes_twice_keeps_the_numbers() -> None:
    assert parse_class_names(b"cat\ndog\ncat\n", "here") == ("cat", "dog", "cat")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "here names 0 classes"),
        (b"cat\n", "here names 1 classes"),
        (b"cat\n\ndog\n", "here, line 2 is blank; it would shift"),
        (b"cat\n\xff\n", "here is not UTF-8"),
    ],
)
def test_bad_class_names(data: bytes, message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        parse_class_names(data, "here")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\n", "here holds no template"),
        (b"a photo of a {c}.\na photo.", r"here, line 2: 'a photo.' has no \{c\}"),
        (b"a photo of a {}.", r"write '\{c\}'"),
        (b"a {c} and a {c}.", "has braces besides one"),
        (b"a {c} by {artist}.", "has braces besides one"),
    ],
)
def test_bad_templates(data: bytes, message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        parse_templates(data, "here")
