"""Text for logs and manifests without passwords, tokens and keys."""

from __future__ import annotations

import re

HIDDEN = "***"

# The word itself, at the end of a name or before another part of it: `auth_token` and `token_value`, not `tokenizer` or `max_tokens`.
_WORD = r"(?:password|passwd|secret|token|credentials?|signature|api[_-]?key|access[_-]?key|private[_-]?key)"
_NAME = rf"[\w.-]*{_WORD}(?:[_.-][\w.-]*)?|sig"
# scheme://user:password@host and scheme://token@host; the host stays.
_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
# name=value and name: value, as in the query of a signed address, in options and in dictionaries; not a folder named so.
_VALUE = re.compile(rf"(?i)(?<![\w./-])((?:--)?(?:{_NAME})['\"]?\s*[=:]\s*['\"]?)([^\s&'\",;}}]+)")


def without_secrets(text: str) -> str:
    """The text with what looks like a secret replaced: users in addresses, and values of names such as `token` or `password`."""
    return _VALUE.sub(rf"\g<1>{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))
