"""A model package: the splat reader, its teacher and their scores in one folder, as `promote` commits it."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import PermanentError, UsageError
from components.figures import FORMAT
from components.manifest import Artifact, open_artifact
from components.store import open_store

if TYPE_CHECKING:
    from torch import Tensor

    from components.adapter import SplatClip
    from components.openclip import LoadedTeacher

MAKER = "promote"
CARD, SCORES = "README.md", "scores.json"
ADAPTER_FILES = ("adapter.json", "adapter.safetensors")
TEACHER_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Package:
    """A model that can be used.

    model: encodes splats and texts; teacher: its tokenizer, and the CLIP that reads photographs; scores: scores.json;
    class_names, templates: what it was scored with, empty after retrieval.
    """

    model: SplatClip
    teacher: LoadedTeacher
    scores: dict[str, Any]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    def embed(self, files: Sequence[bytes]) -> Tensor:
        """Features of .gs2d files, [B, D], of length 1.

        Raises PermanentError for a file that is damaged or of pictures of another size than it was trained on.
        """
        import torch

        from components.loader import SplatBatch
        from components.splats import Splats, pad

        if not files:
            return torch.empty(0, self.model.clip.visual.output_dim, device=self.model.logit_scale.device)
        splats = [Splats.unpack(data, f"splats {index}") for index, data in enumerate(files)]
        for index, one in enumerate(splats):
            if (one.width, one.height) != self.model.config.picture:
                width, height = self.model.config.picture
                raise PermanentError(
                    f"splats {index} are of a picture of {one.width} x {one.height}; this model reads splats of "
                    f"pictures of {width} x {height}: fit them at that size"
                )
        padded = pad(splats, max(len(one) for one in splats))
        arrays = (padded.means, padded.cholesky, padded.colors, padded.mask)
        batch = SplatBatch(*(torch.from_numpy(array) for array in arrays)).to(self.model.logit_scale.device)
        with torch.inference_mode():
            return self.model.encode_splats(batch)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, [U, D], of length 1."""
        import torch

        tokens = self.teacher.tokenizer(list(texts)).to(self.model.logit_scale.device)
        with torch.inference_mode():
            return self.model.encode_text(tokens)

    def classify(self, files: Sequence[bytes]) -> list[str]:
        """The class name of each .gs2d file; UsageError where the model was scored on captions and has no classes."""
        if not self.class_names:
            raise UsageError("this model was scored by retrieval and names no classes; compare embed() with texts")
        chosen = (self.embed(files) @ self._classifier).argmax(1)
        return [self.class_names[number] for number in chosen.tolist()]

    @functools.cached_property
    def _classifier(self) -> Tensor:
        from components.contrastive import prompt_classifier

        return prompt_classifier(self.model.clip, self.teacher.tokenizer, self.class_names, self.templates)


def load_package(ref: str, store: str = ".", device: str = "cpu") -> Package:
    """Load a package for use, in evaluation mode.

    ref: models:/NAME@champion or models:/NAME/VERSION of MLflow's registry; or the package's folder or s3:// prefix; or
    its manifest, looked up under `store`.
    Raises UsageError where it is no package or there is no such version, PermanentError where it is damaged,
    TransientError where MLflow does not answer.
    """
    if ref.startswith("models:/"):
        from components.registry_source import fetch

        with tempfile.TemporaryDirectory(prefix="splatclip-") as folder:
            return _load(open_artifact(fetch(ref, Path(folder)), open_store(folder)), device)
    return _load(open_artifact(ref, open_store(store)), device)


def _load(artifact: Artifact, device: str) -> Package:
    from components.adapter import load_adapter
    from components.openclip import load_teacher

    if artifact.manifest.stage != MAKER:
        raise UsageError(
            f"{artifact.url} was made by {artifact.manifest.stage}; give {MAKER}'s output, a model package"
        )
    teacher = load_teacher(artifact, device)
    scores = read_scores(artifact)
    return Package(
        model=load_adapter(artifact, teacher, device),
        teacher=teacher,
        scores=scores,
        class_names=tuple(scores["class_names"]),
        templates=tuple(scores["templates"]),
    )


def read_scores(artifact: Artifact) -> dict[str, Any]:
    """scores.json of a package or an evaluation; PermanentError if it is none or of another format."""
    where = f"{artifact.url}/{SCORES}"
    with artifact.local(SCORES) as path:
        try:
            scores = json.loads(path.read_bytes())
        except ValueError as error:
            raise PermanentError(f"{where} is not JSON: {error}; run zero-shot-eval again") from None
    if not isinstance(scores, dict) or scores.get("format") != FORMAT:
        raise PermanentError(f"{where} is not of format {FORMAT}; run zero-shot-eval again with this version")
    return scores


def splats_row(scores: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The row of the splat reader; PermanentError if there is none."""
    found = next((row for row in scores["rows"] if row["name"] == "splats"), None)
    if found is None:
        raise PermanentError(f"{where}: {SCORES} has no row 'splats'; run zero-shot-eval again")
    row: Mapping[str, Any] = found
    return row
