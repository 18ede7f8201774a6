"""Is an answer of the S3 service whole? By the sums and counts that it brings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree as ET  # as the client itself reads answers

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

_MD5 = re.compile(r"[0-9a-f]{32}")


class DamagedError(HTTPError):
    """An answer is not what its own sums and counts say; to be asked for again."""


class NotS3Error(HTTPError):
    """Whoever answers is no S3 service."""


def md5(data: bytes = b"") -> hashlib._Hash:
    """S3's checksum; against accidents, not attackers."""
    return hashlib.md5(data, usedforsecurity=False)


def md5_etag(headers: Mapping[str, str]) -> str:
    """The content's MD5 as hex digits, where the ETag is one; otherwise an empty text.

    It is none of an upload in parts and of what is encrypted with a key of KMS or of the customer.
    """
    if headers.get("x-amz-server-side-encryption", "").startswith("aws:kms"):
        return ""
    if "x-amz-server-side-encryption-customer-algorithm" in headers:
        return ""
    etag = headers.get("etag", "").strip('"')
    return etag if _MD5.fullmatch(etag) else ""


def check_answer(method: str, url: str, sent: bytes, response: BaseHTTPResponse) -> None:
    """Check a successful answer that is read whole; DamagedError says what is wrong with it."""
    query = parse_qs(urlsplit(url).query, keep_blank_values=True)
    if method == "PUT":
        etag = md5_etag(response.headers)
        if etag and etag != md5(sent).hexdigest():
            raise DamagedError(f"the service received other bytes than were sent (its ETag is {etag})")
    elif method == "POST" and "uploadId" in query:
        _check_completed(sent, response.data)
    elif method == "GET" and "list-type" in query:
        kind = response.headers.get("Content-Type", "xml")
        if "xml" not in kind:
            raise NotS3Error(f"{kind} instead of a listing")
        _check_listing(response.data)


def _parsed(body: bytes, root: str) -> ET.Element:
    try:
        found = ET.fromstring(body)  # noqa: S314, no entities beyond expat's own limits
    except ET.ParseError:
        raise DamagedError("the answer is no XML") from None
    for element in found.iter():  # without the namespace, which services write differently
        element.tag = element.tag.rpartition("}")[2]
    if found.tag != root:  # an error may come after 200 was sent
        raise DamagedError(f"the answer is {found.findtext('Code') or found.tag} instead of {root}")
    return found


def _check_completed(sent: bytes, body: bytes) -> None:
    etag = (_parsed(body, "CompleteMultipartUploadResult").findtext("ETag") or "").strip('"')
    expected = completed_etag(sent)
    if expected and re.fullmatch(r"[0-9a-f]{32}-\d+", etag) and etag != expected:
        raise DamagedError(f"the parts became another object (its ETag is {etag} instead of {expected})")


def completed_etag(sent: bytes) -> str:
    """The ETag of the object that a request to complete an upload makes; empty where the parts' are no MD5."""
    parts = [etag.strip('"') for etag in re.findall(r"<ETag>(.*?)</ETag>", sent.decode().replace("&quot;", '"'))]
    if not parts or not all(_MD5.fullmatch(part) for part in parts):
        return ""
    return f"{md5(b''.join(map(bytes.fromhex, parts))).hexdigest()}-{len(parts)}"


def _check_listing(body: bytes) -> None:
    """A listing has no sum; this finds a part that is missing or does not parse, not a wrong letter in a name."""
    found = _parsed(body, "ListBucketResult")
    if found.findtext("IsTruncated") not in {"true", "false"} or found.find("Name") is None:
        raise DamagedError("the listing has no end")
    count = found.findtext("KeyCount")
    listed = len(found.findall("Contents")) + len(found.findall("CommonPrefixes"))
    if count is not None and count != str(listed):
        raise DamagedError(f"the listing has {listed} of {count} names")
    if any(not item.findtext("Key") for item in found.findall("Contents")):
        raise DamagedError("a name in the listing is missing")
