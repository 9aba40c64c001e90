"""The reference cases as the reference's users have them, for the tests of the calculators."""

from __future__ import annotations

import tensorflow as tf

from beam_influence import FirstOrderInfluenceCalculator, InfluenceModel
from tests.influence_ops import reference

EXACT = 1e-9  # the same float64 sums in another order




class Case:
    """A reference case as the reference's users have it: a model and two batched datasets."""

    def __init__(self, name: str, batch: int = 17, **options):
        data = reference.case_a() if name == "a" else reference.case_b()
        label = "y" if name == "a" else "t"
        l2 = 0.0 if name == "a" else float(data["lam"])
        loss = "squared_error" if name == "a" else "softmax_cross_entropy"
        network = reference.dense_model(data["kernel"], data["bias"], l2)
        self.data = data
        self.model = InfluenceModel(network, loss_function=loss, regularizer="loss")
        self.x, self.y = data["x_train"], data[f"{label}_train"]
        self.train = tf.data.Dataset.from_tensor_slices((self.x, self.y)).batch(batch)
        self.test = tf.data.Dataset.from_tensor_slices((data["x_test"], data[f"{label}_test"])).batch(7)
        self.calculator = FirstOrderInfluenceCalculator(self.model, self.train, **options)

    def head(self, count: int, batch: int = 4) -> tf.data.Dataset:
        """The first training examples."""
        return tf.data.Dataset.from_tensor_slices((self.x[:count], self.y[:count])).batch(batch)

    def test_head(self, count: int) -> tf.data.Dataset:
        """The first test points."""
        return self.test.unbatch().take(count).batch(3)
