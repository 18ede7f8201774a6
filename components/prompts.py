"""Class names and prompt templates of a set, as CLIP_benchmark's layout stores them."""

from __future__ import annotations

from dataclasses import dataclass

from components.errors import PermanentError
from components.manifest import Artifact

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
DATASET_TYPE = "dataset_type.txt"
KINDS = ("classification", "multilabel", "retrieval")  # what it may say; without it: classification
PLACEHOLDER = "{c}"
DEFAULT_TEMPLATES = (
    "a photo of a {c}.",
    "a photo of the {c}.",
    "a picture of a {c}.",
    "a close-up photo of a {c}.",
    "a small photo of a {c}.",
    "a bright photo of a {c}.",
    "a dark photo of a {c}.",
)


@dataclass(frozen=True)
class Prompts:
    """class_names [C] and templates, each with {c} where the name goes; default_templates: the set brought none."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    default_templates: bool

    def texts(self) -> list[list[str]]:
        """[C][templates] prompts."""
        return [[template.replace(PLACEHOLDER, name) for template in self.templates] for name in self.class_names]


def _lines(data: bytes, where: str) -> list[tuple[int, str]]:
    """Numbered lines that are not blank."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PermanentError(f"{where} is not UTF-8 text: {error}; save it as UTF-8") from None
    lines = text.lstrip("\ufeff").splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def parse_class_names(data: bytes, where: str) -> tuple[str, ...]:
    """One class name a line, in the order of the class numbers.

    A name may come twice (ImageNet-1K has two of missile): such classes cannot be told apart, and the first is taken.
    Raises PermanentError for fewer than two names, or a blank line between names (it would shift the numbers).
    """
    numbered = _lines(data, where)
    if len(numbered) < 2:
        raise PermanentError(f"{where} names {len(numbered)} classes; classification needs at least two, one a line")
    for expected, (number, _) in enumerate(numbered, start=1):
        if number != expected:
            raise PermanentError(f"{where}, line {expected} is blank; it would shift the class numbers after it")
    return tuple(name for _, name in numbered)


def parse_templates(data: bytes, where: str) -> tuple[str, ...]:
    """One template a line, each with {c} exactly where the class name goes. Raises PermanentError naming the line."""
    templates = []
    for number, line in _lines(data, where):
        rest = line.replace(PLACEHOLDER, "", 1)
        if PLACEHOLDER not in line:
            hint = " (it has '{}'; write '{c}')" if "{}" in line else ""
            raise PermanentError(f"{where}, line {number}: {line!r} has no {PLACEHOLDER} for the class name{hint}")
        if "{" in rest or "}" in rest:
            raise PermanentError(f"{where}, line {number}: {line!r} has braces besides one {PLACEHOLDER}")
        templates.append(line)
    if not templates:
        raise PermanentError(f"{where} holds no template; write one a line, for example: {DEFAULT_TEMPLATES[0]}")
    return tuple(templates)


def parse_kind(data: bytes, where: str) -> str:
    """One of KINDS. Raises PermanentError for another word."""
    kind = data.decode("utf-8", "replace").strip().lower()
    if kind not in KINDS:
        raise PermanentError(f"{where} says {kind[:40]!r}; expected one of: {', '.join(KINDS)}")
    return kind


def load_kind(images: Artifact) -> str:
    """What an image set is scored by, one of KINDS: as it says itself, or by whether it has class names."""
    data = _file(images, DATASET_TYPE)
    if data is not None:
        return parse_kind(data, f"{images.url.rstrip('/')}/{DATASET_TYPE}")
    return "retrieval" if _file(images, CLASS_NAMES) is None else "classification"


def _file(images: Artifact, name: str) -> bytes | None:
    for entry in images.manifest.files:
        if entry.name == name:
            with images.local(entry) as path:
                return path.read_bytes()
    return None


def load_prompts(images: Artifact) -> Prompts | None:
    """The set's own class names and templates, the default templates where it has none; None without class names."""
    names = _file(images, CLASS_NAMES)
    if names is None:
        return None
    templates = _file(images, TEMPLATES)
    where = images.url.rstrip("/")
    parsed = DEFAULT_TEMPLATES if templates is None else parse_templates(templates, f"{where}/{TEMPLATES}")
    return Prompts(parse_class_names(names, f"{where}/{CLASS_NAMES}"), parsed, templates is None)
