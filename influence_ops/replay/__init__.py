"""A training run, repeated step by step and gone through backward: the derivative of what it ends in by every example's weight."""

from beam_influence.influence_ops import device as device  # sets TensorFlow's log level before it is imported
