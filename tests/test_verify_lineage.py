"""Verify follows inputs: those that changed, are elsewhere, make no sense or go round, and outputs that moved."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from three_outputs import damage, rewrite, warnings, whole

from components.store import Store, open_store
from components.verify import verify


def test_an_input_that_is_another_one_by_now(root: Store) -> None:
    images, splats, scores = whole(root)
    rewrite(images, lambda manifest: replace(manifest, metrics={"other": 1}))
    for prefix in (root.url, splats.url, scores.url):
        result = verify(prefix)
        [line] = damage(result)
        assert line.startswith(f"damage: {splats.url}: was made from images {images.manifest.path} ")
        assert images.manifest.sha256 in line
        assert "run splat_fit again" in line
        assert result.lineage[-1].endswith(" CHANGED")


def test_an_input_that_is_elsewhere_is_a_warning(root: Store) -> None:
    images, splats, scores = whole(root)
    for name in images.store.list():
        images.store.delete(name)
    for prefix in (root.url, scores.url):
        result = verify(prefix)
        assert damage(result) == []
        [line] = warnings(result)
        assert line.startswith(f"warning: {splats.url}: its input 'images', {images.manifest.path}, is not in this st")
        assert result.lineage[-1] == f"    images: download/{images.manifest.key[:8]} not in this store"


def test_an_input_whose_manifest_is_damaged_or_makes_no_sense(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    images, splats, scores = whole(root)
    images.store.put_bytes("manifest.json", b"{")
    [line] = damage(verify(scores.url))
    assert f"{splats.url}: its input 'images' cannot be read: {images.url}/manifest.json: not a valid manifest" in line
    images.store.put_bytes("manifest.json", splats.manifest.to_bytes())
    [line] = damage(verify(scores.url))
    assert f"{images.manifest.path}, holds the manifest of {splats.manifest.path}" in line
    for given in ({"path": "../../etc", "sha256": ""}, {"path": "x"}, "text"):
        changed: Any = {"images": given}
        rewrite(splats, lambda manifest, changed=changed: replace(manifest, inputs=changed))
        assert any("its input 'images' is not a path and a sha256" in line for line in damage(verify(splats.url)))


def test_outputs_that_name_each_other_as_inputs_end(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    images, splats, _ = whole(root)
    given = {"splats": {"path": splats.manifest.path, "sha256": splats.manifest.sha256}}
    rewrite(images, lambda manifest: replace(manifest, inputs=given))
    result = verify(root.url)
    assert len(damage(result)) == 1
    assert len(result.lineage) == 4


def test_an_output_that_was_moved_or_is_a_copy(tmp_path: Path) -> None:
    root = open_store(str(tmp_path / "store"))
    images, splats, _ = whole(root)
    moved = tmp_path / "store" / "elsewhere"
    shutil.move(splats.url, moved)
    copy = tmp_path / "store" / "artifact"
    copy.mkdir()
    (copy / "manifest.json").write_bytes(images.manifest.to_bytes())
    found = damage(verify(root.url))
    assert len(found) == 2
    assert f"{copy}/manifest.json: says that it lies at {images.manifest.path}: a copy, or moved" in found[0]
    assert f"{moved}/manifest.json: says that it lies at {splats.manifest.path}" in found[1]
    Path(moved, splats.entry("reader.bin").stored).write_bytes(b"other")
    assert len(damage(verify(root.url))) == 3, "what was moved is read all the same"
