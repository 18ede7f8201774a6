"""SplatClip: the teacher's own path with latents for patches, and what its freeze policies free."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from components.adapter import SplatClip, encode_patches, load_trained, patch_embeddings, trained_state
from components.config import FREEZE_POLICIES as POLICY_NAMES
from components.errors import PermanentError, UsageError
from components.freeze import FREEZE_POLICIES, apply_control_policy, apply_freeze_policy, check_teacher
from components.openclip import import_open_clip
from components.stems import StemConfig
from components.tokens import NUM_FEATURES, FeatureStats

TEXT = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}


def tiny_clip(**vision: Any) -> Any:
    torch.manual_seed(0)
    shape = {"image_size": 32, "layers": 3, "width": 48, "head_width": 16, "patch_size": 8, **vision}
    return import_open_clip().CLIP(embed_dim=24, vision_cfg=shape, text_cfg=TEXT).eval()


def config(width: int = 48, num_latents: int = 16, grid: tuple[int, int] = (4, 4), **changes: Any) -> StemConfig:
    unit = {n: FeatureStats(mean=(0.0,) * n, std=(1.0,) * n) for n in (NUM_FEATURES, width)}
    values = {
        "stem": "paper", "stem_width": 32, "layers": 1, "heads": 4, "num_latents": num_latents, "grid": grid,
        "width": width, "picture": (32, 32), "features": unit[NUM_FEATURES], "tokens": unit[width],
    }  # fmt: skip
    return StemConfig(**{**values, **changes})


def splats() -> SimpleNamespace:
    g = torch.Generator().manual_seed(2)
    cholesky = torch.rand(3, 20, 3, generator=g) * 3 + 0.5
    means, colors = torch.rand(3, 20, 2, generator=g) * 32, torch.rand(3, 20, 3, generator=g)
    return SimpleNamespace(means=means, cholesky=cholesky, colors=colors, mask=torch.ones(3, 20, dtype=torch.bool))


@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"pool_type": "avg"},
        {"no_ln_pre": True},
        {"final_ln_after_pool": True, "pool_type": "avg"},
        {"pos_embed_type": "sin_cos_2d"},
        {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 4},
    ],
    ids=lambda v: ",".join(v) or "plain",
)
def test_true_patch_embeddings_give_the_teachers_embedding(vision: dict[str, Any]) -> None:
    clip = tiny_clip(**vision)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        wanted = clip.encode_image(images)
        assert torch.equal(encode_patches(clip, patch_embeddings(clip, images)), wanted)


def test_encode_splats_and_text() -> None:
    clip = tiny_clip()
    model, given = SplatClip(clip, config()), splats()
    features = model.encode_splats(given)
    assert features.shape == (3, 24)
    assert torch.allclose(features.norm(dim=-1), torch.ones(3), atol=1e-5)
    raw = model.encode_splats(given, normalize=False)
    assert torch.allclose(raw / raw.norm(dim=-1, keepdim=True), features, atol=1e-5)
    assert torch.equal(raw, encode_patches(clip, model.patch_latents(given)))
    tokens = torch.randint(1, 64, (2, 16))
    assert torch.equal(model.encode_text(tokens), clip.encode_text(tokens, normalize=True))
    assert model.logit_scale is clip.logit_scale


def test_other_numbers_of_latents() -> None:
    model = SplatClip(tiny_clip(), config(num_latents=8))
    assert model.patch_latents(splats()).shape == (3, 8, 48)
    assert model.encode_splats(splats()).shape == (3, 24)


def names_that_train(model: torch.nn.Module) -> set[str]:
    return {name.removeprefix("clip.") for name, p in model.named_parameters() if p.requires_grad}


def test_policies_free_what_they_name() -> None:
    assert tuple(FREEZE_POLICIES) == POLICY_NAMES
    model = SplatClip(tiny_clip(), config())
    share = apply_freeze_policy(model, "stem")
    assert all(name.startswith("stem.") for name in names_that_train(model))
    assert share.trained == sum(p.numel() for p in model.stem.parameters())
    apply_freeze_policy(model, "paper")
    freed = names_that_train(model)
    assert {"visual.proj", "visual.ln_post.weight", "visual.transformer.resblocks.1.mlp.c_fc.bias"} <= freed
    for frozen in (
        "visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight", "visual.ln_pre.weight",
        "visual.transformer.resblocks.2.mlp.c_fc.bias", "token_embedding.weight", "text_projection", "logit_scale",
    ):  # fmt: skip
        assert frozen not in freed
        assert frozen in dict(model.clip.named_parameters())
    with pytest.raises(UsageError, match="paper"):
        apply_freeze_policy(model, "everything")


def test_control_trains_the_same_with_its_patch_embedding_for_the_stem() -> None:
    model, control = SplatClip(tiny_clip(), config()), tiny_clip()
    apply_freeze_policy(model, "paper")
    apply_control_policy(control, "paper")
    student = {name for name in names_that_train(model) if not name.startswith("stem.")}
    assert names_that_train(control) == student | {"visual.conv1.weight"}


def test_shares_are_counted() -> None:
    model = SplatClip(tiny_clip(), config())
    share = apply_freeze_policy(model, "paper")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert share.all_total == sum(sizes.values())
    assert share.total == share.all_total - 64 * 32
    assert share.vision_total == sum(n for name, n in sizes.items() if name.startswith(("clip.visual.", "stem.")))
    assert share.share == share.trained / share.total


def test_the_papers_share_at_vit_m_16() -> None:
    """GaussianVision: 9.7 % of all parameters train in stage 2, with the stem's sizes of params/datacomp-small.yaml."""
    with torch.device("meta"):
        clip = import_open_clip().create_model("ViT-M-16", pretrained=None, device="meta")
    shape = config(width=512, num_latents=196, grid=(14, 14), stem_width=256, layers=4, heads=8, picture=(224, 224))
    share = apply_freeze_policy(SplatClip(clip, shape), "paper")
    assert share.all_share == pytest.approx(0.097, abs=0.005)
    stem = apply_freeze_policy(SplatClip(clip, shape), "stem")
    assert share.trained - stem.trained == pytest.approx(6.57e6, rel=0.001)  # two blocks, norm and projection


def test_trained_tensors_go_out_and_come_back() -> None:
    model = SplatClip(tiny_clip(), config())
    apply_freeze_policy(model, "paper")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    state = trained_state(model)
    other = SplatClip(tiny_clip(), config())
    apply_freeze_policy(other, "paper")
    load_trained(other, state, "here")
    with torch.no_grad():
        assert torch.equal(other.encode_splats(splats()), model.encode_splats(splats()))
    missing = dict(state)
    del missing["clip.visual.proj"]
    with pytest.raises(PermanentError, match=r"here.*visual\.proj"):
        load_trained(other, missing, "here")
    with pytest.raises(PermanentError, match=r"visual\.proj"):
        load_trained(other, {**state, "clip.visual.proj": torch.zeros(3)}, "here")


def test_only_open_clips_vision_transformer() -> None:
    with pytest.raises(PermanentError, match="Linear"):
        check_teacher(SimpleNamespace(visual=torch.nn.Linear(2, 2)))
