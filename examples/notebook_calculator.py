"""The calculator in a notebook: influential examples, wrong labels, and the same answer from a Beam job.

A script of cells ('# %%'), for an editor that shows them as a notebook, or to be run from top to bottom:

    python -m examples.notebook_calculator
"""

# %% [markdown]
# # Which training examples made the model say this?
#
# scikit-learn's digits, 8 % of the training labels changed on purpose, a small network, and its last layer watched.

# %%
from __future__ import annotations

import pathlib
import sys
import tempfile

from beam_influence.influence_ops import device  # sets TensorFlow's log level before it is imported

device.configure_tensorflow()

import numpy as np  # noqa: E402  (after the log level is set)
import pyarrow.parquet as pq  # noqa: E402
import tensorflow as tf  # noqa: E402

from beam_influence import ORDER, FirstOrderInfluenceCalculator, InfluenceConfig, InfluenceModel, run  # noqa: E402
from beam_influence.pipelines.demo import digits  # noqa: E402
from beam_influence.pipelines.demo.demo import trained_model, write_split  # noqa: E402

FLIPPED = 0.08
TEST_POINTS = 20
K = 5
CURVATURE, DAMPING = "exact", 0.01

temporary = tempfile.TemporaryDirectory(prefix="influence-")
folder = pathlib.Path(temporary.name)
data = digits.load()
images, true_labels = data["train"].features["image"], data["train"].labels
tests = data["test"].select(np.arange(TEST_POINTS))
test_images, test_labels = tests.features["image"], tests.labels

rng = np.random.default_rng(0)
flipped = np.zeros(len(images), dtype=bool)
flipped[rng.choice(len(images), round(FLIPPED * len(images)), replace=False)] = True
labels = np.where(flipped, (true_labels + rng.integers(1, 10, len(images))) % 10, true_labels)

network = trained_model(digits.DEMO, data["train"]._replace(labels=labels))
accuracy = np.mean(network.predict(data["test"].features["image"], verbose="0").argmax(axis=1) == data["test"].labels)
print(f"{len(images):,} training examples, {flipped.sum()} with a wrong label; accuracy on test digits {accuracy:.2f}")

# %% [markdown]
# ## The calculator
#
# Its names, arguments and shapes are those of Influenciae's `FirstOrderInfluenceCalculator`; `damping` is ours.

# %%
model = InfluenceModel(network)  # the last layer, the loss it was compiled with
train = tf.data.Dataset.from_tensor_slices((images, labels)).batch(200)
test = tf.data.Dataset.from_tensor_slices((test_images, test_labels)).batch(8)

calculator = FirstOrderInfluenceCalculator(model, train, CURVATURE, damping=DAMPING)
meta = calculator.preconditioner.meta
smallest, largest = meta["smallest_eigenvalue"], meta["largest_eigenvalue"]
print(f"curvature: {model.size} weights, rank {meta['rank']}, eigenvalues {smallest:.2g} to {largest:.2g}, damping {meta['damping']:g}")

# %% [markdown]
# ## The training examples that helped and harmed most at some test points
#
# Positive: removing the example would raise the loss at the test point.

# %%
best = list(calculator.top_k(test, train, K, d_type=tf.float64, with_ids=True))
worst = list(calculator.top_k(test, train, K, order=ORDER.ASCENDING, d_type=tf.float64, with_ids=True))
for element, opposite in zip(best[:1], worst[:1], strict=True):
    for point in range(3):
        print(f"\ntest point {point}, label {element[0][1][point]}")
        for what, (_, values, _, positions, found) in (("helpful", element), ("harmful", opposite)):
            shown = [
                f"{position} ({label}{', wrong' if flipped[position] else ''}: {value:+.2f})"
                for position, label, value in zip(positions[point].numpy(), found[point].numpy(), values[point].numpy(), strict=True)
            ]
            print(f"  {what}: {', '.join(shown)}")

harmful = flipped[np.concatenate([element[3] for element in worst])].mean()
print(f"\nwrong labels among the {K} most harmful examples of {TEST_POINTS} test points: {harmful:.0%}, {flipped.mean():.0%} by chance")

# %% [markdown]
# ## Candidates for a wrong label
#
# An example that only the model's memory of it explains has a large influence on itself. The plain loss is the baseline;
# with as many wrong labels as here it is as good, and cheaper.

# %%
self_influence = np.concatenate([values.numpy()[:, 0] for _, values in calculator.compute_influence_values(train)])
probabilities = network.predict(images, verbose="0")
loss = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12))
count = int(flipped.sum())
print()
for n in (count // 2, count):
    shares = [flipped[np.argsort(-ranking)[:n]].mean() for ranking in (self_influence, loss)]
    chance = flipped.mean()
    print(f"wrong labels among the first {n}: {shares[0]:.0%} by self-influence, {shares[1]:.0%} by the loss, {chance:.0%} by chance")

# %% [markdown]
# ## Saved: the curvature and the influence vectors
#
# Parquet and NumPy files in the Beam job's formats; another notebook, or a job, starts from them.

# %%
calculator.save_curvature(str(folder / "curvature"))
vectors = calculator.compute_influence_vector(train, str(folder / "vectors"))
again = FirstOrderInfluenceCalculator(model, str(folder / "curvature"))  # no pass over the training set
loaded = again.top_k(test, train, K, load_influence_vector_ds_path=str(folder / "vectors"), d_type=tf.float64)
same = all(np.allclose(a[1], b[1], rtol=1e-12, atol=0) for a, b in zip(best, loaded, strict=True))
assert same, "the saved vectors give another answer"
print("\nsaved curvature and vectors, loaded again: the same top-k")

# %% [markdown]
# ## The same question, asked of the Beam job
#
# Files in place of arrays. On a cluster only `--runner` would change.

# %%
network.save(folder / "model.keras")
train_files, names = write_split(digits.DEMO, folder, "train", data["train"]._replace(labels=labels))
test_files, _ = write_split(digits.DEMO, folder, "test", tests)
config = InfluenceConfig(
    model=str(folder / "model.keras"),
    train=train_files,
    test=test_files,
    output=str(folder / "job"),
    curvature=CURVATURE,
    damping=str(DAMPING),
    top_k=K,
    outputs="top_k,self_influence",
)
run(config, stream=sys.stdout)

# An id is <file>:<index>; the dataset is in the order of files and indices.
position = {name: row for row, name in enumerate(names)}

job_self = np.zeros(len(images))
for row in pq.read_table(folder / "job" / "self_influence").to_pylist():
    job_self[position[row["train_id"]]] = row["influence"]
difference = np.abs(job_self - self_influence).max() / np.abs(self_influence).max()

job_top = np.zeros((TEST_POINTS, K))
job_positions = np.zeros((TEST_POINTS, K), dtype=int)
for row in pq.read_table(folder / "job" / "top_k").to_pylist():
    point = int(row["test_id"].rpartition(":")[2]), row["rank"] - 1  # one test file
    job_top[point], job_positions[point] = row["influence"], position[row["train_id"]]
values = np.concatenate([element[1] for element in best])
difference = max(difference, np.abs(job_top - values).max() / np.abs(values).max())
assert difference < 1e-6, f"the notebook and the job differ by {difference:.1e}"
assert np.array_equal(job_positions, np.concatenate([element[3] for element in best])), "the job ranks otherwise"
print(f"\nthe notebook and the job: the same top-{K} and self-influence, largest relative difference {difference:.0e}")
