"""`beam-influence demo`: three real data sets with wrong labels put in, from nothing to an opened report."""

DEMOS = {
    "digits": "handwritten digits: pictures, as gzip TFRecord",
    "text": "definitions of words, good or bad: text, as CSV",
    "table": "penguins: strings, numbers and missing values, as Parquet",
}
"""Each demo by its name, in some words; the module of that name has it. Nothing here waits for TensorFlow."""
