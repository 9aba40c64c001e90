"""The user's Keras model and its loss. In: a batch of decoded examples. Out: each example's loss and gradient, as blocks by layer."""
