"""What the teacher says of every picture: computed once, kept beside the shards, found by the next student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from components.decoder import Decoder
from components.device import mixed_precision, precision
from components.entries import FileEntry, ShardEntry, file_bytes, file_entry
from components.errors import PermanentError
from components.manifest import Artifact, Commit
from components.openclip import normalize_images
from components.pairs import ShardPairs
from components.progress import progress
from components.scratch import save_tensors, scratch_folder
from components.store import Store, StoreNotFound, sha256_file

if TYPE_CHECKING:
    from components.distributed import World
    from components.openclip import LoadedTeacher
    from components.signals import Stop
    from components.train_adapter.data import Given

STAGE, VERSION = "teacher_embeddings", 1
DONE = "_done"
TENSOR = "embeddings"
EMBED_BATCH = 256


def embed(clip: Any, images: Tensor) -> Tensor:
    """L2-normalised image features in float32: images [B, 3, H, W], normalised -> [B, D]."""
    with mixed_precision(images.device):
        features = clip.encode_image(images)
    return F.normalize(features.float(), dim=-1)


class Targets(Protocol):
    """What the teacher says of the pictures of a batch."""

    def of(self, given: Given) -> Tensor:
        """[B, D] float32, L2-normalised, of the pictures as they are augmented."""


class EmbeddingsAsGiven:
    """The teacher's embeddings, each batch anew: of pictures that no two epochs see alike (windows, colour jitter), or
    where they are not to be kept.
    """

    def __init__(self, loaded: LoadedTeacher) -> None:
        self._clip = loaded.model

    @torch.no_grad()
    def of(self, given: Given) -> Tensor:
        """[B, D] float32, L2-normalised, of the pictures as they are augmented."""
        return embed(self._clip, given.images)


class TeacherEmbeddings:
    """The teacher's embedding of every picture of a split and, with `flips`, of its mirror image.

    They lie in the store at teacher_embeddings/<key>, the key made of the images' and the teacher's manifests, of the
    number format that the teacher ran in and of `flips`: one safetensors file for each image shard, [sides, pictures,
    D] in float16 (half the bytes of float32; a component is off by 2^-11 of itself at most, far less than bfloat16 does
    to it on the way), and a manifest that counts them. Several processes make a part of the files each; a stop loses at
    most the file in hand. Files are mapped into memory, so that they may be larger than it; those of an S3 store are
    copied to a temporary folder first.
    Raises PermanentError for a picture that cannot be decoded or a damaged file, Interrupted after SIGTERM.
    """

    def __init__(
        self,
        images: Artifact,
        teacher: Artifact,
        loaded: LoadedTeacher,
        store: Store,
        *,
        flips: bool,
        stop: Stop,
        world: World,
        split: str = "train",
    ) -> None:
        self._clip = loaded.model
        device = next(loaded.model.parameters()).device
        params = {"split": split, "flips": flips, "dtype": "float16", "precision": precision(device)}
        commit = Commit(
            store,
            stage=STAGE,
            version=VERSION,
            params={**params, "device": device.type},
            inputs={"images": images, "teacher": teacher},
        )
        if not world.share(lambda: commit.finished() is not None):
            _Maker(images, split, loaded, commit, flips=flips).run(stop, world)
        artifact = commit.finished()
        if artifact is None:
            raise PermanentError(f"{commit.url} has no manifest; give all processes the same store")
        self.artifact = artifact
        self._files = {_index(entry): entry for entry in artifact.manifest.files}
        self._maps: dict[int, Tensor] = {}

    def of(self, given: Given) -> Tensor:
        """[B, D] float32, L2-normalised, of the pictures as they are mirrored."""
        shards, rows = given.batch.places.unbind(1)
        sides = given.flip.long()
        found = torch.empty(len(shards), self._map(int(shards[0])).shape[-1])
        for index in sorted(set(shards.tolist())):
            mine = shards == index
            found[mine] = self._map(index)[sides[mine], rows[mine]].float()
        return F.normalize(found, dim=-1).to(given.images.device)

    def _map(self, index: int) -> Tensor:
        if index not in self._maps:
            entry = self._files[index]
            with self.artifact.local(entry) as path:  # the mapping outlives a temporary copy's name
                try:
                    self._maps[index] = load_file(path)[TENSOR]
                except (SafetensorError, KeyError) as error:
                    where = f"{self.artifact.url}/{entry.name}"
                    raise PermanentError(f"{where}: not a file of embeddings ({error!r}); delete it") from error
        return self._maps[index]


def _index(entry: FileEntry) -> int:
    return int(Path(entry.name).name.partition("-")[0])


class _Maker:
    """Computes and commits the files that are not there yet."""

    def __init__(self, images: Artifact, split: str, teacher: LoadedTeacher, commit: Commit, *, flips: bool) -> None:
        self._pairs = ShardPairs(images, split, None, want_images=True, want_splats=False)
        self._shards = [shard for shard in images.manifest.split(split) if shard.ok]
        self._decode = Decoder(image_size=teacher.image_size, num_gaussians=0)
        self._split, self._teacher, self._commit, self._flips = split, teacher, commit, flips

    def run(self, stop: Stop, world: World) -> None:
        """Make this process's part; process 0 lists all when every process is done."""
        done = world.share(self._done)  # one list for all: each its own part of what is missing, and nothing left over
        missing = [shard for shard in self._shards if shard.index not in done]
        mine = missing[world.part(len(missing))]
        label, total = "teacher's embeddings", sum(shard.ok for shard in mine)
        with progress(label, total=total, unit="pictures", shown=world.leads) as bar:
            for shard in mine:
                self._make(shard)
                bar.advance(shard.ok)
                stop.check("finished phases and shards are kept; run the same command again to go on")
        world.wait()
        if world.leads:
            files = self._done()
            if lost := sorted({shard.index for shard in self._shards} - files.keys()):
                raise PermanentError(
                    f"{self._commit.url}: no embeddings of image shards {lost}, though they were made; something "
                    "removed them: run the same command again"
                )
            sides = 2 if self._flips else 1
            pictures = sum(shard.ok for shard in self._shards)
            metrics = {"pictures": pictures, "embeddings": pictures * sides, "dim": self._teacher.config["embed_dim"]}
            self._commit.finalise(shards=[], files=list(files.values()), metrics=metrics)
        world.wait()

    def _done(self) -> dict[int, FileEntry]:
        """The files committed so far by their shard's index; not those whose content is gone."""
        self._commit.begin()
        found = {}
        store = self._commit.store
        for name in store.list(f"{DONE}/"):
            entry = file_entry(store.get_bytes(name), f"{store.url}/{name}")
            try:
                if store.size(entry.place) == entry.bytes:
                    found[_index(entry)] = entry
            except StoreNotFound:
                continue
            except ValueError as error:  # a name without the shard's number
                where = f"{store.url}/{name}"
                raise PermanentError(f"{where}: not a valid entry ({error}); delete it and run again") from error
        return found

    @torch.no_grad()
    def _make(self, shard: ShardEntry) -> None:
        rows = self._pairs.read(shard)
        teacher, device = self._teacher, next(self._teacher.model.parameters()).device
        sides: list[list[Tensor]] = [[], []] if self._flips else [[]]
        for start in range(0, len(rows), EMBED_BATCH):
            pixels = torch.from_numpy(self._decode.images(rows.part(start, start + EMBED_BATCH).encoded())).to(device)
            images = normalize_images(pixels, teacher.mean, teacher.std)
            for side, parts in enumerate(sides):
                parts.append(embed(teacher.model, images.flip(3) if side else images).cpu())
        whole = torch.stack([torch.cat(parts) for parts in sides]).half()
        with scratch_folder() as folder:
            path = folder / "embeddings.safetensors"
            save_tensors({TENSOR: whole}, path, {"image_shard": shard.sha256})
            # By content: processes that make one file at a time may differ in their bytes (threads, machines).
            name = f"{self._split}/{shard.index:05d}-{sha256_file(path)[:12]}.safetensors"
            entry = self._commit.put_file(name, path)
        self._commit.store.put_bytes(f"{DONE}/{shard.index:05d}.json", file_bytes(entry))
