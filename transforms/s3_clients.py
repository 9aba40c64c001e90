"""Cheaper clients of S3. Beam makes one for each operation, and botocore reads and parses megabytes of JSON for each: 70 ms of CPU.

Importing this module makes a process parse each of these files once. It does nothing where botocore is not installed.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import apache_beam.io.filesystems  # noqa: F401  imports botocore where it is installed

_loaders: Any = sys.modules.get("botocore.loaders")

if _loaders is not None:
    _load_file = _loaders.JSONFileLoader.load_file

    @functools.cache
    def _parsed(path: str) -> Any:
        return _load_file(_loaders.JSONFileLoader(), path)

    # Clients of one botocore session share what is parsed too, so nothing changes it.
    _loaders.JSONFileLoader.load_file = lambda self, file_path: _parsed(file_path)
