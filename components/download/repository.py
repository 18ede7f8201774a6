"""Which files of a dataset repository are which split: by its README's `configs`, or by their names, as on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.errors import PermanentError, UsageError
from components.fields import nearest
from components.yaml_text import parse

README = "README.md"
PARQUET = ".parquet"
_WORDS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
USUAL = {word: split for split, words in _WORDS.items() for word in words}  # a repository's word -> ours
MAX_PATTERN = 1024  # characters, of a README's
_NUMBERED = re.compile(r"(?P<split>\w[\w.]*?)-\d{5}-of-\d{5}[^/]*\.parquet$")
_CONVERTED = re.compile(r"(?:^|/)(?:partial-)?(?P<split>[^/]+)/\d{4}\.parquet$")
_WORD = re.compile(rf"(?:^|[-._ /])({'|'.join(sorted(USUAL, key=len, reverse=True))})(?=[-._ /\d]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Config:
    """One of a repository's configurations: its Parquet files by split, in order, and its README's word on columns."""

    name: str
    files: Mapping[str, Sequence[str]]
    features: Any = None


def read_card(text: str, where: str) -> dict[str, Any]:
    """The YAML that a README begins with; empty where it has none. Raises PermanentError if it is none."""
    match = re.match(r"\ufeff?---\s*\n(.*?\n)---\s*(\n|$)", text.replace("\r\n", "\n"), re.DOTALL)
    if not match:
        return {}
    try:
        card = parse(match[1], f"{where}: {README}")
    except UsageError as error:
        raise PermanentError(str(error)) from None
    return card if isinstance(card, dict) else {}


def split_by_name(path: str) -> str:
    """The split that a file's name or, failing that, the folders above it speak of; `train` where nothing does."""
    if match := _NUMBERED.search(path) or _CONVERTED.search(path):
        return match["split"]
    for part in reversed(path.removesuffix(PARQUET).split("/")):
        if words := _WORD.findall(part):
            return str(words[-1]).lower()
    return "train"


def matches(pattern: str, path: str) -> bool:
    """Whether a path is what a pattern of a README means: `*` stays in a folder, `**` does not.

    All places in the pattern that what was read so far may have come to are kept at once, as bits of a number, so that
    nothing is tried twice; a pattern of more than MAX_PATTERN characters is nothing's.
    """
    pattern = pattern.removeprefix("./")
    if len(pattern) > MAX_PATTERN or not path.startswith(re.split(r"[*?]", pattern, maxsplit=1)[0]):
        return False
    signs: list[str] = []
    for sign in re.findall(r"\*\*/|\*\*|.", pattern, re.DOTALL):
        signs += ["", "**", "/"] if sign == "**/" else [sign]  # "": the next three may be left out

    def where(*wanted: str) -> int:
        return sum(1 << place for place, sign in enumerate(signs) if sign in wanted)

    optional, one, any_, many = where(""), where("*"), where("?"), where("**")

    def reached(places: int) -> int:
        """And the places behind signs that may stand for nothing."""
        while (found := places | (places & (optional | one | many)) << 1 | (places & optional) << 3) != places:
            places = found
        return places

    of_letter = {letter: where(letter) & ~(one | any_) for letter in set(path)}
    places = reached(1)
    for letter in path:
        stay, step = many, of_letter[letter]
        if letter != "/":
            stay, step = many | one, step | any_
        places = reached((places & stay) | (places & step) << 1)
    return bool(places >> len(signs) & 1)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value] if isinstance(value, list) else []


def _of_config(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """The files of one entry of `configs`."""
    base = f"{str(given['data_dir']).strip('/')}/" if given.get("data_dir") else ""
    listed = given.get("data_files")
    if listed is None:
        return _by_names([name for name in names if name.startswith(base)])
    if isinstance(listed, dict):
        listed = [{"split": split, "path": paths} for split, paths in listed.items()]
    if isinstance(listed, list) and all(isinstance(one, dict) for one in listed):
        wanted = [(str(one.get("split", "train")), _texts(one.get("path"))) for one in listed]
    else:
        wanted = [("train", _texts(listed))]
    found: dict[str, list[str]] = {}
    for split, patterns in wanted:
        files = [name for name in names if any(matches(base + pattern, name) for pattern in patterns)]
        found.setdefault(split, []).extend(files)
    return {split: files for split, files in found.items() if files}


def _by_names(names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(split_by_name(name), []).append(name)
    return found


def _features(card: Mapping[str, Any], config: str) -> Any:
    """What `dataset_info` says of the columns of a configuration."""
    infos = card.get("dataset_info")
    infos = infos if isinstance(infos, list) else [infos]
    infos = [info for info in infos if isinstance(info, dict)]
    mine = [info for info in infos if info.get("config_name", config) == config] or (infos if len(infos) == 1 else [])
    return mine[0].get("features") if mine else None


def choose(card: Mapping[str, Any], names: Sequence[str], config: str, where: str) -> Config:
    """The configuration of that name; empty: the only one, or the default one.

    names: all files of the repository. Raises PermanentError, which names those there, and says what to do where there
    are no Parquet files.
    """
    tables = [name for name in names if name.endswith(PARQUET)]
    listed = card.get("configs")
    configs = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    known = {str(one.get("config_name", "default")): one for one in configs}
    if not config and known:
        default = [name for name, one in known.items() if one.get("default") is True]
        config = (default or [name for name in known if name == "default" or len(known) == 1] or [""])[0]
        if not config:
            raise PermanentError(f"{where} has several configurations; name one in download.hub.config: {_some(known)}")
    if known and config not in known:
        raise PermanentError(f"{where} has no configuration {config!r}{nearest(config, known)}; it has: {_some(known)}")
    if known:
        files = _of_config(known[config], tables)
    else:
        folders = sorted({name.partition("/")[0] for name in tables if "/" in name})
        if config and config not in folders:
            raise PermanentError(
                f"{where} has no configuration {config!r}{nearest(config, folders)}; it has folders: {_some(folders)}"
            )
        converted = {name.partition("/")[0] for name in tables if name.count("/") == 2 and _CONVERTED.search(name)}
        if not config and len(converted) > 1:
            raise PermanentError(
                f"{where} has several configurations; name one in download.hub.config: {_some(sorted(converted))}"
            )
        files = _by_names([name for name in tables if not config or name.startswith(f"{config}/")])
    if not files:
        ends = sorted({f".{name.rpartition('.')[2]}" for name in names if "." in name.rpartition("/")[2]})
        raise PermanentError(
            f"{where} holds no Parquet files{f' of configuration {config!r}' if config else ''}, only {_some(ends)}; "
            "the hub's own copy may: set download.hub.revision to refs/convert/parquet; tars are read by source "
            "webdataset with path hf://datasets/owner/name"
        )
    return Config(config, files, _features(card, config))


def choose_splits(files: Mapping[str, Sequence[str]], split: str, where: str) -> list[tuple[str, str]]:
    """Files in order, each with the split that it is: train, val, test, or empty where `split` names one.

    Raises PermanentError, which names those there.
    """
    if split:
        if split not in files:
            raise PermanentError(
                f"{where} has no split {split!r}{nearest(split, files)}; it has: {_some(files)}; see download.hub.split"
            )
        return [(name, "") for name in sorted(files[split])]
    usual = sorted((USUAL[there.lower()], name) for there in files if there.lower() in USUAL for name in files[there])
    if not usual:
        raise PermanentError(
            f"{where}: none of its splits is a usual one; name one in download.hub.split: {_some(files)}"
        )
    order = list(_WORDS)
    return [(name, split) for split, name in sorted(usual, key=lambda one: (order.index(one[0]), one[1]))]


def _some(names: Any, most: int = 20) -> str:
    listed = [str(name) for name in names]
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (", ".join(listed[:most]) + rest) or "nothing"
