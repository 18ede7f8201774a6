"""Dataset repositories for tests: Parquet files as `datasets` writes them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from downloads import download
from pyarrow import parquet
from url_lists import PICTURES

from components.hub_params import HubParams

NAMES = ["red_apple", "blue sky", "cat"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(first: int, count: int, *, said: bool = True, **columns: Any) -> bytes:
    """A file as `datasets` writes it: an Image column, and what its columns are in the schema's metadata."""
    pictures = [{"bytes": PICTURES[str(n % 40)], "path": f"{n}.jpg"} for n in range(first, first + count)]
    found = pa.table({"image": pa.array(pictures, IMAGE), **columns})
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    if said:
        told = json.dumps({"info": {"features": {name: features[name] for name in features if name in columns}}})
        found = found.replace_schema_metadata({"huggingface": told})
    stream = io.BytesIO()
    parquet.write_table(found, stream, row_group_size=7)
    return stream.getvalue()


def labels(first: int, count: int) -> pa.Array:
    return pa.array([n % 3 for n in range(first, first + count)], pa.int64())


CLASSES = {
    "README.md": b"---\nlicense: mit\n---\n# A set\n",
    "data/train-00000-of-00002.parquet": table(0, 12, label=labels(0, 12)),
    "data/train-00001-of-00002.parquet": table(12, 12, label=labels(12, 12)),
    "data/test-00000-of-00001.parquet": table(24, 9, label=labels(24, 9)),
}


def fetch(store: Path, repo: str, **hub_params: Any) -> Any:
    return download(
        store, source="huggingface", path=repo, dataset=repo, hub=HubParams(**hub_params), num_train=0, num_val=4
    )


def stored(columns: dict[str, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream, **options)
    return stream.getvalue()


def pictures_of(count: int) -> pa.Array:
    return pa.array([{"bytes": PICTURES[str(n)], "path": f"{n}.jpg"} for n in range(count)], IMAGE)
