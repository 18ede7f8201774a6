"""What a repository's README and its files' names say: splits, patterns, configurations."""

from __future__ import annotations

import random
import re
import time

import pytest

from components.download.repository import choose, choose_splits, matches, read_card, split_by_name
from components.errors import PermanentError


def test_names_of_files_say_what_split_they_are() -> None:
    for path, split in {
        "train.parquet": "train", "data/my-test_file.parquet": "test", "validation1.parquet": "validation",
        "val/0001.parquet": "val", "x/dev-a.parquet": "dev", "contest.parquet": "train", "data.parquet": "train",
        "data/test_fold1-00000-of-00003-abc.parquet": "test_fold1", "train/a/b.parquet": "train",
    }.items():  # fmt: skip
        assert split_by_name(path) == split, path


def meant(pattern: str, path: str) -> bool:
    """What a pattern means, as a regular expression says it."""
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./"))
    return re.fullmatch("".join(signs.get(part) or re.escape(part) for part in parts), path) is not None


def test_patterns_of_a_readme() -> None:
    rng = random.Random(3)
    hits = 0
    for _ in range(6000):
        pattern = "".join(rng.choices(["a", "b", "/", "*", "**/", "**", "?", "(", "\\"], k=rng.randrange(7)))
        path = "".join(rng.choices("ab/(\\?", (4, 3, 3, 1, 1, 1), k=rng.randrange(8)))
        hits += meant(pattern, path)
        assert matches(pattern, path) == meant(pattern, path), (pattern, path)
    assert hits > 300


def test_a_pattern_that_is_made_to_take_for_ever_does_not() -> None:
    """As a regular expression each further `*a` took eight times as long."""
    names = ["a" * 200 + ".parquet"] * 50
    started = time.process_time()
    for pattern in ("*a" * 200 + "x", "**/" * 300 + "x", "**" * 300 + "x", "a" * 5000, "*" * 5000 + "x"):
        with pytest.raises(PermanentError, match="holds no Parquet files"):
            choose({"configs": [{"data_files": pattern}]}, names, "", "here")
    assert time.process_time() - started < 20


def test_readmes_in_other_words() -> None:
    assert read_card("no yaml", "") == {}
    assert read_card("---\r\na: 1\r\n---\r\n", "") == {"a": 1}
    names = ["x/train.parquet", "x/test.parquet", "y.parquet"]
    by_folder = choose({"configs": [{"config_name": "c", "data_dir": "x"}]}, names, "", "here")
    assert by_folder.files == {"train": ["x/train.parquet"], "test": ["x/test.parquet"]}
    listed = choose({"configs": [{"data_files": ["x/*.parquet"]}]}, names, "", "here")
    assert listed.files == {"train": ["x/train.parquet", "x/test.parquet"]}
    mapped = choose({"configs": [{"data_files": {"test": "y.parquet"}}]}, names, "", "here")
    assert mapped.files == {"test": ["y.parquet"]}
    with pytest.raises(PermanentError, match=r"name one in download.hub.config: a, b"):
        choose({"configs": [{"config_name": "a"}, {"config_name": "b"}]}, names, "", "here")
    with pytest.raises(PermanentError, match=r"none of its splits is a usual one; .*: fold1"):
        choose_splits({"fold1": ["a"]}, "", "here")
    assert choose_splits({"test": ["b", "a"], "dev": ["c"]}, "", "here") == [("c", "val"), ("a", "test"), ("b", "test")]
