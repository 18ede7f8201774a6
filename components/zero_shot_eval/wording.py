"""In which sense a row was tested. "Zero-shot" is a claim about training, so it is worked out from what was trained."""

from __future__ import annotations

from collections.abc import Iterable

ZERO_SHOT = "zero-shot"
IN_DISTRIBUTION = "in-distribution, prompt classifier"
IN_DISTRIBUTION_RETRIEVAL = "in-distribution retrieval"


def _plain(names: Iterable[str]) -> set[str]:
    return {" ".join(name.lower().replace("_", " ").split()) for name in names}


def classification_setting(evaluated: Iterable[str], trained: Iterable[str] | None) -> str:
    """The wording for a prompt classifier over `evaluated` classes.

    trained: the classes this row's training here has seen; empty: none (an imported teacher, untouched); None: it was
    trained here on pictures whose classes are not known, so nothing is claimed. Case and underscores do not matter.
    """
    if trained is None:
        return "trained here on unlabelled pictures, prompt classifier"
    names = _plain(evaluated)
    seen = len(names & _plain(trained))
    if seen == 0:
        return ZERO_SHOT
    return IN_DISTRIBUTION if seen == len(names) else f"{IN_DISTRIBUTION} ({seen} of {len(names)} classes trained on)"


def retrieval_setting(trained_here: bool, same_pictures: bool) -> str:
    """The wording for retrieval: same_pictures says whether this row trained on this very image set's train split."""
    if not trained_here:
        return "zero-shot retrieval"
    return IN_DISTRIBUTION_RETRIEVAL if same_pictures else "retrieval, trained here on another image set"


def is_zero_shot(setting: str) -> bool:
    """Whether a row may be called zero-shot."""
    return setting.startswith(ZERO_SHOT)
