"""Secrets in addresses: a user's name and password, signatures, tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
# //user:password@; a password may hold what an address should not, but host:8080/a@b is none
_USER = re.compile(r"(://)(?:[^/\s?#]+|[^/\s?#@:\[]+:(?!\d*/)[^\s?#]*)@")
_NAMES = r"sig|[^=&\s]*(?:signature|token|secret|password|api[_-]?key|credential|awsaccesskeyid)[^=&\s]*|x-amz-[^=&\s]*"
_QUERY = re.compile(rf"([?&;#](?:{_NAMES})=)[^&;#\s'\"]+", re.IGNORECASE)


def redacted(value: Any) -> Any:
    """The same value with *** in place of secrets, in texts and in what lists and mappings hold.

    What comes back equal held none.
    """
    if isinstance(value, str):
        return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {name: redacted(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(redacted(item) for item in value)
    return value
