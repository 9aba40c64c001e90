"""In: gradients of training examples and solved test points. Out: influence, top-k tables, groups' sums and an index to search."""

from beam_influence.influence_ops import device as device  # sets TensorFlow's log level before it is imported
