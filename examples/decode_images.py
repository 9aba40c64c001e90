"""A `--preprocess` function: images that are stored as PNG or JPEG bytes, decoded on the workers.

    beam-influence run ... --preprocess examples.decode_images:decode_images --input_features image

The feature `image` holds one encoded image. The model's only input gets [B, H, W, C] in 0..1; an image that can't be
decoded, or of another size than the first ones, is rejected alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf


def decode_images(features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Encoded images (B,), bytes, to float32 [B, H, W, C] in 0..1."""
    images = [tf.io.decode_image(encoded, expand_animations=False).numpy() for encoded in features["image"]]
    return np.stack(images).astype(np.float32) / 255
