"""Arrays that every worker process needs: small ones as a side input, large ones by path.

A side input costs 6 to 20 times its size in memory and is decoded in every bundle. Above `INLINE_LIMIT` the
arrays are written once and only their path and digest travel; a process maps the files, so that the processes of
one machine share their pages.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from beam_influence.influence_ops.results.array_folder import array_path, digest_of, from_npy, load_meta, mapped_arrays, save_arrays, to_npy
from beam_influence.transforms.files import BeamFiles

INLINE_LIMIT = 1 << 20
_IN_MEMORY = 10 << 20  # of an array that is read from an object store; a larger one is mapped from a file of this machine
INLINE_PART_LIMIT = 64 << 10  # of one among many: thousands of layers have thousands of parts


@dataclasses.dataclass(frozen=True)
class Broadcast:
    """A reference to named arrays and their description, by value or by path.

    Attributes:
      digest: SHA-256 of the content.
      meta: the description, as JSON.
      inline: the arrays as `.npy` bytes, or None.
      folder: where they are saved, or None.
      arrays: with a folder, the description of each array's file, as JSON: the files of just this content, whatever is saved there later.
    """

    digest: str
    meta: str
    inline: Mapping[str, bytes] | None
    folder: str | None
    arrays: str | None = None

    @classmethod
    def publish(
        cls,
        arrays: Mapping[str, np.ndarray],
        meta: Mapping[str, Any],
        folder: str,
        inline_limit: int = INLINE_LIMIT,
        is_kept: bool = False,
    ) -> Broadcast:
        """Makes the arrays available to all workers; writes to `folder` only when they are large, or kept there for later runs."""
        content = json.dumps(meta, sort_keys=True)
        digest = digest_of({**arrays, "": np.frombuffer(content.encode(), dtype=np.uint8)})
        is_small = sum(array.nbytes for array in arrays.values()) <= inline_limit
        described = save_arrays(folder, arrays, meta, BeamFiles(), by_content=True) if is_kept or not is_small else {}
        if is_small:
            return cls(digest, content, {name: to_npy(array) for name, array in arrays.items()}, None)
        return cls(digest, content, None, folder, json.dumps(described))

    @classmethod
    def saved(cls, digest: str, meta: str, folder: str) -> Broadcast:
        """What an earlier run has saved.

        Raises:
          ValueError: the folder is not complete.
        """
        return cls(digest, meta, None, folder, json.dumps(load_meta(folder, BeamFiles())["arrays"]))

    @property
    def inline_bytes(self) -> int:
        """What it adds to a side input, beside its path and description."""
        return sum(len(data) for data in (self.inline or {}).values())

    def count_numbers(self, wanted: Callable[[str], bool]) -> int:
        """How many numbers the arrays have whose names are wanted, without opening those that are saved."""
        if self.inline is not None:
            return sum(array.size for array in self.open(wanted)[0].values())
        assert self.arrays is not None
        return sum(math.prod(each["shape"]) for name, each in json.loads(self.arrays).items() if wanted(name))

    @property
    def description(self) -> dict[str, Any]:
        """What the arrays are, without reading them."""
        return json.loads(self.meta)

    def open(self, wanted: Callable[[str], bool] = lambda _: True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays whose names are wanted, and their description; keep them, since each call opens them again."""
        meta = self.description
        if self.inline is not None:
            return {name: from_npy(data) for name, data in self.inline.items() if wanted(name)}, meta
        assert self.folder is not None and self.arrays is not None
        described = {name: each for name, each in json.loads(self.arrays).items() if wanted(name)}
        if "://" in self.folder:
            return mapped_arrays(self.folder, described, BeamFiles(), _IN_MEMORY), meta
        paths = {name: array_path(self.folder, name, each) for name, each in described.items()}
        return {name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in paths.items()}, meta
