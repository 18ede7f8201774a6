"""What a photograph says of itself (EXIF), as text."""

from __future__ import annotations

import json

from PIL import ExifTags, Image

from components.images import DAMAGE, quiet

MAX_TEXT = 200  # characters of a value that are kept; longer ones are data, not words
_GROUPS = {"EXIF": ExifTags.IFD.Exif, "GPS": ExifTags.IFD.GPSInfo}
_POINTERS = {int(ifd) for ifd in ExifTags.IFD}  # to other groups, and to the maker's notes


def exif_json(data: bytes) -> str:
    """JSON {"Image Make": "...", "EXIF FNumber": "2.8", "GPS ...": ...}, keys as exifread and img2dataset have them.

    Values are texts as Pillow words them; bytes, what has no name, and what is damaged are left out: "{}" at the worst.
    """
    exif = Image.Exif()
    found: dict[str, str] = {}
    try:
        with quiet():
            exif.load(data)
            groups = {"Image": dict(exif), **{name: dict(exif.get_ifd(ifd)) for name, ifd in _GROUPS.items()}}
    except DAMAGE:
        return "{}"
    for group, tags in groups.items():
        names = ExifTags.GPSTAGS if group == "GPS" else ExifTags.TAGS
        for tag, value in tags.items():
            if tag in names and tag not in _POINTERS and not isinstance(value, bytes):
                found[f"{group} {names[tag]}"] = str(value).replace("\0", " ").strip()[:MAX_TEXT]
    return json.dumps(found, sort_keys=True)
