"""The user's Keras model and its loss. In: a batch of decoded examples. Out: each example's loss and gradient, as blocks by layer."""

from beam_influence.influence_ops import device as device  # sets TensorFlow's log level before it is imported
