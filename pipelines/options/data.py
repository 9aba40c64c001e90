"""What is read: the files, and which feature has which role."""

from __future__ import annotations

import dataclasses
import functools

from beam_influence.pipelines.options.option import FITTING, option

_option = functools.partial(option, group="data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is read."""

    train: str | None = _option(
        None,
        "The training set: TFRecord files, Parquet or CSV, plain or compressed; see --data_format. Patterns are allowed "
        "('train-*.tfrecord.gz'), several separated by commas.",
        names=True,
        commands=FITTING,
    )
    test: str | None = _option(
        None, "The test points to explain: files as for --train; needed for influence on them.", names=True, commands=("run", "query")
    )
    influence_vectors_path: str | None = _option(
        None,
        "Use the influence vectors that an earlier run wrote (its OUTPUT, with --outputs influence_vectors), with its curvature, "
        "instead of --train: no gradient of a training example is computed again.",
        commands=("run",),
    )
    index: str | None = _option(
        None,
        "Answer from an index (the OUTPUT of the command index), with its curvature, instead of --train: neither the training examples "
        "nor their gradients are touched.",
        names=True,
        commands=("run", "query"),
    )
    candidates: str | None = _option(
        None,
        "Examples that were not trained on, as files as for --train: would it help to add them? They are scored in place of the training "
        "set (whose files make the curvature, unless --curvature_path or --index has it); the columns are then candidate_id and "
        "loss_change_if_added.",
        names=True,
        commands=("run", "query"),
    )
    schema: str | None = _option(
        None,
        "A TensorFlow Metadata schema (schema.pbtxt) of the features: kinds, shapes, defaults, the longest list, sparse features; "
        "without it they are inferred from the first examples.",
    )
    default: str | None = _option(
        None,
        "What stands for a feature that an example lacks, or has as a null or an empty list or cell: 'company=unknown,trip_*=0'; 'nan' "
        "is a number too. A list that is too short is completed by it. A default in the schema is taken where this names none. Without "
        "one such an example is rejected.",
    )
    input_features: str | None = _option(
        None,
        "Which feature feeds which input of the model: 'FEATURE' for a model of one input, else 'input=FEATURE,input=FEATURE'. "
        "Several features make one input as 'a+b+c' or by a pattern, 'pixel_*'. Default: features named as the model's inputs. "
        "With --preprocess: the features that it needs, separated by commas (default: all without another role).",
    )
    data_format: str = _option(
        "auto",
        "How examples are stored: tfrecord (of tf.Example), sequence_example (TFRecord of tf.SequenceExample), parquet, csv (with a "
        "header row; what is between cells is found out), arrow (IPC streams and files), avro, array_record, or auto: by the file's name "
        "and first bytes.",
        choices=("auto", "tfrecord", "sequence_example", "parquet", "csv", "arrow", "avro", "array_record"),
    )
    preprocess: str | None = _option(
        None,
        "Your function module:function, called on the workers for each batch with {feature: array [B, ...]}; it returns "
        "{model input: array [B, ...]}, such as decoded images.",
    )
    label_feature: str = _option(
        "label",
        "The feature that holds the label. For a model of several outputs, separated by commas: the label of each, named as the output "
        "or as 'output=FEATURE'; a loss of your own gets them as a dictionary.",
    )
    id_feature: str | None = _option(None, "A feature that names each example, and no other. Default: '<file>:<index in the file>'.")
    group_feature: str | None = _option(
        None, "A feature of the training examples that names their group; needed for the group tables.", commands=("run",)
    )
    test_group_feature: str | None = _option(
        None,
        "A feature of the test points that names their group; group_influence then has rows for each group of them.",
        commands=("run",),
    )
    weight_feature: str | None = _option(
        None, "A feature with each example's weight in the training loss (Keras's sample_weight), or with one for each position."
    )
    max_rejected: int = _option(
        0, "How many examples may be unusable (damaged, incomplete, not finite) before the run fails.", least=0, changes_result=False
    )

    def check(self) -> None:
        """Raises `ValueError` where one is wrong."""
        if not self.label_features or not all(self.label_features):
            raise ValueError(f"--label_feature {self.label_feature!r} must name a feature")
        if self.preprocess is not None and ":" not in self.preprocess:
            raise ValueError(f"--preprocess {self.preprocess!r} is not an import path; write it as 'package.module:function'")
        if self.preprocess is not None and "=" in (self.input_features or ""):
            raise ValueError(
                f"--input_features {self.input_features!r}: with --preprocess, name the features it needs, separated by commas; "
                "the function itself decides which feeds which input"
            )
        self.input_mapping()
        self.defaults()

    def defaults(self) -> dict[str, str]:
        """Feature or pattern → what stands for a value that is missing.

        Raises:
          ValueError: one is not written as FEATURE=VALUE, or named twice.
        """
        found: dict[str, str] = {}
        for pair in (self.default or "").split(",") if self.default is not None else ():
            name, separator, value = pair.strip().partition("=")
            if not (separator and name) or name in found:
                why = "names one feature twice" if name in found else "is not FEATURE=VALUE,FEATURE=VALUE"
                raise ValueError(f"--default {self.default!r} {why}; write it as 'company=unknown,trip_miles=0', with no comma in a value")
            found[name] = value
        return found

    def input_mapping(self) -> dict[str, str]:
        """Model input name -> feature name; the key '' stands for the only input."""
        mapping = {}
        for pair in (self.input_features or "").split(","):
            name, separator, feature = pair.strip().rpartition("=")
            if separator and not (name and feature):
                raise ValueError(f"--input_features {self.input_features!r}: write FEATURE, or input=FEATURE,input=FEATURE")
            if feature:
                mapping[name] = feature
        return mapping

    @property
    def preprocess_features(self) -> tuple[str, ...]:
        """The features that `preprocess` needs; none named: all without another role."""
        return tuple(name.strip() for name in (self.input_features or "").split(",") if name.strip())

    @property
    def label_features(self) -> tuple[str, ...]:
        """The features in `label_feature`."""
        return tuple(pair.rpartition("=")[2].strip() for pair in self.label_feature.split(",") if pair.strip())

    @property
    def label_outputs(self) -> tuple[str, ...]:
        """The output of the model that each of `label_features` belongs to; '' where none is named."""
        return tuple(pair.rpartition("=")[0].strip() for pair in self.label_feature.split(",") if pair.strip())
