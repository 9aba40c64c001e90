"""How well do scores predict what retraining does? The measures of the field, over score tables of any size."""

from beam_influence.influence_ops import device as device  # sets TensorFlow's log level before it is imported
