"""The corpus that fuzzing begins with, made by our own code: `python tests/fuzz/seeds.py` writes tests/corpus anew.

Files of the same names are replaced; others, which fuzzing found, stay.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import splat2d  # noqa: E402
from icc import SRGB, WIDE, grey_profile, rgb_profile  # noqa: E402
from PIL import Image  # noqa: E402

from components.entries import FileEntry, Manifest, SampleNote, ShardEntry, count, done_bytes, file_bytes  # noqa: E402
from components.registry_line import Decision  # noqa: E402
from components.shards import Sample, ShardIndex, write_shard  # noqa: E402
from components.tracking_journal import Journal  # noqa: E402
from fuzz.checks import folder  # noqa: E402
from fuzz.shards import repaired  # noqa: E402

Seeds = Iterator[tuple[str, bytes]]


def gs2d() -> Seeds:
    """Files of 0 to 19 Gaussians."""
    rng = np.random.default_rng(0)
    for n in (0, 1, 9, 19):
        means, spread, colors = rng.uniform(0, 16, (n, 2)), rng.uniform(0.5, 4, (n, 3)), rng.normal(0, 1, (n, 3))
        yield f"{n}.gs2d", splat2d.encode(means, spread, colors, 16, 24)[0]


codec = gs2d


def shards() -> Seeds:
    """Tars, indexes and texts."""
    path = folder() / "seed.tar"
    samples = [Sample("a", {"txt": b"one", "json": b"{}"}), Sample("x/b", {"txt": b"two"})]
    layout = write_shard(path, samples)
    yield "plain.tar", b"T" + path.read_bytes()[:4096]
    write_shard(path, [Sample("long/" + "x" * 120, {"txt": "ü".encode()})])
    yield "pax.tar", b"T" + path.read_bytes()[:4096]
    backwards = tarfile.TarInfo("a")
    backwards.type = b"L"
    header = bytearray(backwards.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"-00000001000"  # a walk that believes it stays where it is
    yield "size_below_0.tar", repaired(b"T" + bytes(header))
    yield "two.idx", b"I" + ShardIndex.of(layout).to_bytes()
    yield "texts", b'X{"captions":["a dog",""],"class":1}\0a cat\0001'
    yield "text_only", b"X\0a cat\0"
    yield "class_infinite", b'X{"class":1e999}\0\0'
    yield "class_of_70_bits", b'X{"class":1000000000000000000000}\0\0'
    yield "deep_json", b"X" + b"[" * 2000


def manifests() -> Seeds:
    """One of each kind."""
    entry = ShardEntry(
        index=0, split="test", name="test/00000-ab.tar", sha256="ab" * 32, bytes=10, ok=1, skipped={"duplicate": 1},
        failed={}, samples=[SampleNote(key="b", outcome="skipped", reason="duplicate")], source="a.tar",
        files=[FileEntry(name="test/00000-ab.idx", sha256="cd" * 32, bytes=3, stored="test/00000-ab-cd.idx")],
        metrics={"psnr_db": 30.5}, backend="avx2", params_hash="ef",
    )  # fmt: skip
    whole = Manifest(
        stage="s", version=1, key="k", path="s/k", params={"a": [1, None]}, params_hash="ef",
        inputs={"images": {"path": "d/e", "sha256": "00"}}, shards=[entry], files=[], counts=count([entry]),
        metrics={},
    )  # fmt: skip
    yield "manifest.json", b"M" + whole.to_bytes()
    yield "shard.json", b"S" + done_bytes(entry, summed=False)
    yield "file.json", b"F" + file_bytes(entry.files[0])
    journal = Journal("s", "t", id="0")
    journal.add("run", **{"as": "step"}, find=None, experiment="e", name="n", tags={}, start=1)
    journal.log("step", metrics=[("loss", 0.5, 1, 2)], params={"a": "b"})
    yield "journal.jsonl", b"J" + re.sub(rb'"written": \d+', b'"written": 1', journal.to_bytes())
    yield "name_is_a_number.json", b'F{"bytes":3,"name":5,"sha256":"cd"}'
    yield "not_a_number.json", b"M" + whole.to_bytes().replace(b"30.5", b"NaN")
    yield "deep.json", b"M" + b'{"a":' * 1500
    yield "written_infinite.jsonl", b'J{"journal":"0","format":1,"target":"t","closed":false,"written":1e999}\n'
    yield "decision.json", b"D" + Decision((1, 2), 3).to_json().encode()


def captions() -> Seeds:
    """One of each kind."""
    yield "captions.csv", b'Cimage,caption,class\na.png,"one, two",cat\nb.png,x,dog\n'
    yield "captions.jsonl", b'L{"image":"a.png","captions":["one","two"]}\n{"file":"b.png","caption":"x"}\n'
    yield "names.txt", b"Ncat\ndog\n"
    yield "templates.txt", b"Na photo of a {c}.\n{c}\n"
    stream = io.BytesIO()
    np.save(stream, np.array([0, 1], np.int64))
    yield "classes", b'Wclassification\0\0{"caption":"x"}\0\0a dog\0\0001\0\0' + stream.getvalue()
    yield "class_of_5000_digits", b"Wclassification\0\0{}\0\0\0\0" + b"1" * 5000
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (999999999999,), }".ljust(117) + b"\n"
    yield "npy_of_terabytes", b"Wmultilabel\0\0{}\0\0\0\0\0\0\x93NUMPY\1\0\x76\0" + header
    yield "labels", b"Wmultilabel\0\0{}\0\0\0\0\0\0" + stream.getvalue()
    yield "retrieval", b"Wretrieval\0\0{}\0\0one\ntwo"


def params() -> Seeds:
    """Sections, anchors, overrides."""
    yield "some.yaml", b"download: {image_size: 64, urls: {carry: [a]}}\nsplat_fit:\n  num_gaussians: 4.0e+2\n"
    yield "overrides", b"seed: &s {seed: 3}\n\0download.seed=1\0train_adapter.stage2_learning_rates=[1e-3, .1]"
    lists = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))
    yield "aliases_of_aliases.yaml", f"a0: &a0 [x]\n{lists}\n".encode()
    yield "alias_of_itself.yaml", b"download: &d {urls: *d}\ndownload_eval: *d\n"
    yield "no_such_day.yaml", b"download: {path: 2024-13-45}\n"
    yield "tag.yaml", b"download: {path: !!bool x}\n"
    yield "alias.yaml", b"download: &d {num_test: 10, num_train: 20}\ndownload_eval: *d\n"


def urls() -> Seeds:
    """One of each kind."""
    yield "address", b"Ahttps://a.example:8080/b%20c.png?d=e#f"
    yield "ipv6", b"A::ffff:127.0.0.1"
    yield "range", b"Ahttp://a.example/{0..3}.tar"
    yield "location", b"L//b.example/../c.png"
    yield "retry_after", b"HWed, 21 Oct 2026 07:28:00 GMT"
    yield "x_robots", b"Hsplatclip: noindex, noai"
    yield "robots.txt", b"RUser-agent: *\nDisallow: /b\nAllow: /b/c\nCrawl-delay: 3\nRequest-rate: 1/5\nSitemap: x\n"
    yield "robots_hostile.txt", "RUser-agent: *\nDisallow: //[\nCrawl-delay: \u00b2\nDisallow: /b\n".encode()
    yield "many_ranges", b"Ahttp://a.example/" + b"{0..9}" * 40
    yield "list.csv", b'Curl,caption,uid\nhttp://a.example/b.png,"one, two",3\n'
    yield "list.tsv", b"TURL\tTEXT\nhttp://a.example/b.png\tx\n"
    yield "list.jsonl", b'J{"url":"http://a.example/b.png","caption":"x","sha256":null}\n{"url":"","punsafe":0.5}\n'
    import pyarrow as pa
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pa.table({"url": ["http://a.example/b.png"], "caption": ["x"]}), stream, compression="none")
    yield "list.parquet", b"P" + stream.getvalue()


def images() -> Seeds:
    """The smallest pictures of each format, EXIF and profiles."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x829D] = 2.8
    exif.get_ifd(0x8825)[1] = "N"
    small = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3))

    def saved(image: Image.Image, format: str, **options: object) -> bytes:
        stream = io.BytesIO()
        image.save(stream, format, **options)
        return b"I" + stream.getvalue()

    for format in ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"):
        yield f"small.{format.lower()}", saved(small, format)
    yield "turned.jpeg", saved(small, "JPEG", exif=exif)
    yield "lzw.tiff", saved(small, "TIFF", compression="tiff_lzw")
    yield "cmyk.jpeg", saved(small.convert("CMYK"), "JPEG")
    yield "deep.png", saved(Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4)), "PNG")
    yield "grey.png", saved(small.convert("L"), "PNG", icc_profile=grey_profile(1.8), exif=exif)
    yield "palette.png", saved(small.convert("P"), "PNG", transparency=0)
    yield "two.gif", saved(small, "GIF", save_all=True, append_images=[small.transpose(Image.Transpose.ROTATE_180)])
    yield "exif", b"E" + exif.tobytes()
    linear = b"curv" + bytes(8)
    yield "wide.icc", b"C" + rgb_profile(WIDE, linear)
    yield "srgb.icc", b"C" + rgb_profile(SRGB, linear)
    yield "grey.icc", b"C" + grey_profile(2.2)


ALL = {one.__name__: one for one in (gs2d, shards, manifests, captions, params, urls, images)} | {"codec": codec}


def main() -> None:
    """Write them."""
    sizes = {}
    for name, made in ALL.items():
        into = ROOT / "tests" / "corpus" / name
        into.mkdir(parents=True, exist_ok=True)
        for file, data in made():
            (into / file).write_bytes(data)
        sizes[name] = sum(path.stat().st_size for path in into.iterdir())
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
