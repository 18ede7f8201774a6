"""Stems: splats -> what stands in for a teacher's patch embeddings, [B, L, teacher's width].

A stem is a module with `forward(splats) -> [B, L, width]`, built by one entry of STEMS from a StemConfig. The config is
all it takes to build the same stem again; it is what adapter.json holds. Each has a file of its own; docs/adapter.md
compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from components.errors import PermanentError
from components.stem_config import StemConfig
from components.stem_grid import GridStem
from components.stem_hilbert import HilbertStem
from components.stem_paper import PaperStem
from components.stem_render import RenderStem
from components.stem_splat import SplatStem
from components.tokens import SplatTensors

__all__ = ["STEMS", "StemConfig", "build_stem", "start_stem"]

STEMS: dict[str, Callable[[StemConfig], nn.Module]] = {
    "splat": SplatStem,
    "paper": PaperStem,
    "render": RenderStem,
    "grid": GridStem,
    "hilbert": HilbertStem,
}


def build_stem(config: StemConfig) -> nn.Module:
    """The stem that `config` describes, freshly initialised; PermanentError for an unknown name."""
    if config.stem not in STEMS:
        raise PermanentError(f"unknown stem {config.stem!r}; this version knows: {', '.join(STEMS)}")
    return STEMS[config.stem](config)


def start_stem(stem: nn.Module, conv: nn.Conv2d, pairs: Iterable[tuple[SplatTensors, Tensor]]) -> None:
    """Give a fresh stem the start that its kind has, without a step: RenderStem the teacher's patch embedding `conv`.

    pairs: splats and the teacher's patch embeddings of the same pictures [B, P, width], which SplatStem's linear map is
    fitted to, where it has as many latents as there are patches. Others stay as they are.
    """
    if isinstance(stem, RenderStem):
        stem.start(conv)
    elif isinstance(stem, SplatStem) and stem.positional_embedding is None:
        stem.start(pairs)
