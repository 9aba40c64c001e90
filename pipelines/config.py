"""The options of a run, each with its help: the command line, the template and the component are made from these."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import types
import typing
from typing import Any

if typing.TYPE_CHECKING:  # when it is needed, it is imported: --help need not wait for TensorFlow
    from beam_influence.influence_ops.curvature import Curvature, FinishOptions
    from beam_influence.influence_ops.scoring.scores import ScoreOptions


COMMANDS = ("run", "fit", "index", "query")
_FITTING = ("run", "fit", "index")


def _option(
    default: Any,
    help: str,
    group: str,
    choices: tuple[str, ...] | None = None,
    commands: tuple[str, ...] = COMMANDS,
    fits: bool = False,
) -> Any:
    """A field that is an option of `commands`; `fits`: it decides how a curvature is fitted, and nothing where a saved one is used."""
    metadata = {"help": help, "group": group, "choices": choices, "commands": commands, "fits": fits}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


ONLY_CURVATURE = "curvature"
ONLY_INDEX = "index"
_ITERATIVE = ("conjugate_gradient", "cgd", "lissa")
_INDEX_RANK = 256  # an index has no residual term, so it needs more eigenpairs: docs/index.md
_EMBEDDING = ("arnoldi", "random_projection")
_BY_PASSES = ("gauss_newton_cg", "conjugate_gradient", "cgd")
_BY_LAYER = ("kfac", "ekfac", "gauss_newton_cg")
_INDEXED = (*_EMBEDDING, "kfac", "ekfac")
_NOT_WHOLE = ("identity", *_ITERATIVE, *_BY_LAYER, *_EMBEDDING)
_DEFAULT_PASSES = 5  # where gauss_newton_cg is as good as the whole matrix; see benchmarks/README.md

_DATA, _MODEL, _METHOD, _RESULT, _RUN = "data", "model", "method", "results", "execution"


@dataclasses.dataclass(frozen=True)
class InfluenceConfig:
    """Everything that decides the result of a run, and how it is executed.

    Raises:
      ValueError: an option is wrong; the message names it, its value and what to write instead.
    """

    model: str = _option(
        dataclasses.MISSING,
        "The trained model: a .keras file, a SavedModel folder, or your function module:function that returns a built Keras model.",
        _MODEL,
    )
    output: str = _option(dataclasses.MISSING, "Folder for the results: Parquet tables and manifest.json.", _RESULT)

    train: str | None = _option(
        None,
        "The training set: TFRecord files (plain or gzip), Parquet or CSV; see --data_format. Patterns are allowed "
        "('train-*.tfrecord.gz'), several separated by commas.",
        _DATA,
        commands=_FITTING,
    )
    test: str | None = _option(
        None, "The test points to explain: files as for --train; needed for influence on them.", _DATA, commands=("run", "query")
    )
    influence_vectors_path: str | None = _option(
        None,
        "Use the influence vectors that an earlier run wrote (its OUTPUT, with --outputs influence_vectors), with its curvature, "
        "instead of --train: no gradient of a training example is computed again.",
        _DATA,
        commands=("run",),
    )
    index: str | None = _option(
        None,
        "Answer from an index (the OUTPUT of the command index), with its curvature, instead of --train: neither the training examples "
        "nor their gradients are touched.",
        _DATA,
        commands=("run", "query"),
    )
    schema: str | None = _option(
        None, "A TensorFlow Metadata schema (schema.pbtxt) of the features; without it they are inferred from the first example.", _DATA
    )
    input_features: str | None = _option(
        None,
        "Which feature feeds which input of the model: 'FEATURE' for a model of one input, else 'input=FEATURE,input=FEATURE'. "
        "Several features make one input as 'a+b+c' or by a pattern, 'pixel_*'. Default: features named as the model's inputs. "
        "With --preprocess: the features that it needs, separated by commas (default: all without another role).",
        _DATA,
    )
    data_format: str = _option(
        "auto",
        "How examples are stored: tfrecord (of tf.Example), sequence_example (TFRecord of tf.SequenceExample), parquet, csv (with a "
        "header row), or auto: by the file's name and first bytes.",
        _DATA,
        ("auto", "tfrecord", "sequence_example", "parquet", "csv"),
    )
    preprocess: str | None = _option(
        None,
        "Your function module:function, called on the workers for each batch with {feature: array [B, ...]}; it returns "
        "{model input: array [B, ...]}, such as decoded images.",
        _DATA,
    )
    label_feature: str = _option(
        "label",
        "The feature that holds the label. For a model of several outputs, separated by commas: the label of each, named as the output "
        "or as 'output=FEATURE'; a loss of your own gets them as a dictionary.",
        _DATA,
    )
    id_feature: str | None = _option(None, "A feature that names each example. Default: '<file>:<index in the file>'.", _DATA)
    group_feature: str | None = _option(
        None, "A feature of the training examples that names their group; needed for the group tables.", _DATA, commands=("run",)
    )
    test_group_feature: str | None = _option(
        None,
        "A feature of the test points that names their group; group_influence then has rows for each group of them.",
        _DATA,
        commands=("run",),
    )
    weight_feature: str | None = _option(
        None, "A feature with each example's weight in the training loss (Keras's sample_weight), or with one for each position.", _DATA
    )
    max_rejected: int = _option(0, "How many examples may be unusable (damaged, incomplete, not finite) before the run fails.", _DATA)

    model_weights: str | None = _option(None, "With --model module:function: a .weights.h5 file that is loaded into the model.", _MODEL)
    checkpoints: str | None = _option(
        None,
        "Checkpoints of the training run in place of the model's own weights, separated by commas: .keras files, SavedModel folders, or "
        ".weights.h5 files for the network of --model. Influence is summed over them (TracIn, with any --curvature).",
        _MODEL,
    )
    checkpoint_weights: str | None = _option(
        None,
        "With --checkpoints: what each one's influence is multiplied by, such as its learning rate, separated by commas. Default: 1/C "
        "each, their mean.",
        _MODEL,
    )
    loss: str = _option(
        "compiled",
        "The loss that the model was trained with: 'compiled' (stored in the model), softmax_cross_entropy (from logits), "
        "sigmoid_cross_entropy (from logits), squared_error, a Keras loss name, or your own as module:function.",
        _MODEL,
    )
    weights: str | None = _option(
        "last", "The weights that are watched: 'last' (the last layer), 'all', or a regular expression on their names.", _MODEL
    )
    start_layer: str | None = _option(
        None,
        "Instead of --weights: the first watched layer, by name or by index among all of the model's layers (negative: from the end); "
        "without --last_layer, the only one.",
        _MODEL,
    )
    last_layer: str | None = _option(None, "With --start_layer: the last watched layer, named likewise.", _MODEL)
    weight_decay: float = _option(0.0, "w of a regulariser 0.5·w·‖θ‖² that training used but the model file does not carry.", _MODEL)
    regularizer: str = _option(
        "curvature",
        "Where the regulariser stands: in the curvature only (objective mean(loss) + R), or also in every example's loss.",
        _MODEL,
        ("curvature", "loss"),
    )
    precision: str = _option(
        "auto",
        "float64, the model's own dtype (native), or auto: float64 where the model can be rebuilt so.",
        _MODEL,
        ("auto", "float64", "native"),
    )

    curvature: str = _option(
        "gauss_newton",
        "The approximation of the Hessian: identity, exact, gauss_newton (P × P matrices), kfac, ekfac, gauss_newton_cg (whole networks), "
        "conjugate_gradient, lissa, arnoldi, random_projection, or your own as module:Class.",
        _METHOD,
        commands=_FITTING,
    )
    n_samples: int | None = _option(
        None,
        "Make the curvature from this many training examples, chosen by --seed and their ids. Default: all; for "
        "conjugate_gradient and lissa, which keep a sample, 1024; for arnoldi 4096.",
        _METHOD,
        commands=_FITTING,
        fits=True,
    )
    seed: int = _option(
        0,
        "Which examples --n_samples chooses, which labels --fisher draws, which directions a random start or projection takes.",
        _METHOD,
        commands=_FITTING,
        fits=True,
    )
    passes: int | None = _option(
        None,
        "With gauss_newton_cg and conjugate_gradient: solve the test points over the whole training set in at most this many passes "
        "over it (0: the answer of EK-FAC, or of the sample; default: 5 for gauss_newton_cg, 0 for conjugate_gradient). With arnoldi: "
        "find the eigenpairs over the whole training set in exactly this many, 2 or more (default: over a sample).",
        _METHOD,
        commands=_FITTING,
    )
    fisher: str | None = _option(
        None,
        "Of kfac, ekfac, gauss_newton_cg and random_projection: which labels the Fisher information is taken over. signed: all, with "
        "random signs by the example's id and --seed, in one backward pass; true: one label drawn from the prediction; expected: all, in "
        "as many backward passes as the model has outputs; empirical: the data's own. Default: signed; of random_projection, expected.",
        _METHOD,
        ("signed", "true", "expected", "empirical"),
        commands=_FITTING,
        fits=True,
    )
    tolerance: float | None = _option(
        None,
        "Of conjugate_gradient and lissa: the relative residual at which a solve ends. Default: 1e-8 and 1e-3; with --passes 1e-6.",
        _METHOD,
        commands=("run", "fit"),
    )
    max_iterations: int | None = _option(
        None,
        "Of conjugate_gradient and lissa over their sample: the most steps of a solve. Default: 1000 and 10000.",
        _METHOD,
        commands=("run", "fit"),
        fits=True,
    )
    curvature_path: str | None = _option(
        None,
        "Use the curvature that an earlier run saved (its OUTPUT/curvature) instead of fitting one.",
        _METHOD,
        commands=("run", "index"),
    )
    damping: str = _option(
        "auto", "λ added to the curvature's diagonal: a number, or auto (0.1 × the mean eigenvalue).", _METHOD, commands=_FITTING, fits=True
    )
    rcond: float | None = _option(
        None,
        "With --damping 0: eigenvalues up to rcond × the largest are dropped. Default: P × the epsilon of what is computed in.",
        _METHOD,
        commands=_FITTING,
        fits=True,
    )
    rank: int | None = _option(
        None,
        "Use this many of the largest eigenvalues of exact, gauss_newton or arnoldi; the rest are taken as equal to the smallest of "
        "them. Default: all; of arnoldi, 100, and of an index 256.",
        _METHOD,
        commands=_FITTING,
        fits=True,
    )
    matrix: str = _option(
        "gauss_newton",
        "Of arnoldi: whose eigenpairs; the exact Hessian's negative ones are left out.",
        _METHOD,
        ("gauss_newton", "hessian"),
        commands=_FITTING,
        fits=True,
    )
    projection_dim: int | None = _option(
        None, "Of random_projection: how many numbers are left of each gradient. Default: 512.", _METHOD, commands=_FITTING, fits=True
    )
    projection: str = _option(
        "hadamard",
        "Of random_projection: of all weights as one vector, or of each layer's matrix from two sides (cheaper, and coarser).",
        _METHOD,
        ("hadamard", "two_sided"),
        commands=_FITTING,
        fits=True,
    )
    block_size: int | None = _option(
        None,
        "Of arnoldi: vectors multiplied at once. Default: what reaches twice --rank dimensions in --passes; 32 over a sample.",
        _METHOD,
        commands=_FITTING,
        fits=True,
    )
    normalize: str = _option(
        "none",
        "Relative influence (RelatIF): divide by ‖v‖ (theta) or by √self-influence (loss).",
        _METHOD,
        ("none", "theta", "loss"),
        commands=("run",),
    )
    removal: str = _option(
        "first_order",
        "How the removal of an example is predicted: to first order, or by its own Newton step (the leverage is in; slower).",
        _METHOD,
        ("first_order", "newton"),
        commands=("run", "fit"),
    )

    score_tolerance: float = _option(
        1e-7,
        "Take test points' solutions as sums of few products where that is cheaper and the relative error is at most this; 0: never.",
        _METHOD,
        commands=("run",),
    )
    second_order_groups: bool = _option(
        False,
        "Group influence to second order: the group's own curvature is in (one more pass over the training set).",
        _METHOD,
        commands=("run",),
    )

    outputs: str = _option(
        "top_k",
        "Which tables to write, separated by commas: top_k, self_influence, self_influence_top_k, group_influence, "
        "group_self_influence, group_vectors, scores, influence_vectors. Or alone: 'curvature', as the command "
        "fit; 'index', as the command index.",
        _RESULT,
        commands=("run", "query"),
    )
    index_dtype: str = _option(
        "float32",
        "How an index stores its numbers; float16, scaled row by row, takes half the space, with errors of about 0.0005 of the largest "
        "score.",
        _RESULT,
        ("float32", "float16"),
        commands=("run", "index"),
    )
    update: bool = _option(
        False,
        "Of the command index: add to the index in OUTPUT the files of --train that it lacks, with its own curvature; the others are only "
        "checked to be the same (by size and SHA-256).",
        _RESULT,
        commands=("run", "index"),
    )
    search: str = _option(
        "linear",
        "How an index is searched: linear, in float64, or faiss, for top_k in float32 (pip install faiss-cpu).",
        _RESULT,
        ("linear", "faiss"),
        commands=("run", "query"),
    )
    top_k: int = _option(10, "How many training examples to keep for each test point.", _RESULT, commands=("run", "query"))
    order: str = _option(
        "descending",
        "descending: the most helpful examples first; ascending: the most harmful first.",
        _RESULT,
        ("descending", "ascending"),
        commands=("run", "query"),
    )
    overwrite: bool = _option(False, "Replace the finished run that OUTPUT holds.", _RESULT)

    verbose: bool = _option(False, "Tell on stderr how each layer is computed and what it is estimated to cost.", _RUN)
    resume: bool = _option(
        True,
        "Go on where a run into the same OUTPUT was ended: what it finished from the same model, files and options (each pass of the "
        "curvature, the embedded test points) is not computed again.",
        _RUN,
    )
    batch_size: int = _option(256, "Examples evaluated at once; does not change the result.", _RUN)
    query_block_size: int = _option(
        1024, "Test points in a block (one row group of top_k); does not change the result.", _RUN, commands=("run", "query")
    )
    threads: int = _option(0, "CPU threads of TensorFlow in each worker process; 0: all cores.", _RUN)
    work_dir: str | None = _option(None, "Temporary files; all workers must reach it. Default: OUTPUT/.work.", _RUN)

    def __post_init__(self) -> None:
        from beam_influence.influence_ops.scoring.outputs.table import OUTPUTS

        for name in ("model", "train", "test", "output", "index"):
            value = getattr(self, name)
            if value is not None and not value.strip(" ,"):
                raise ValueError(f"--{name} {value!r} must not be empty")
        for field in dataclasses.fields(self):
            choices, value = field.metadata["choices"], getattr(self, field.name)
            if choices and value is not None and value not in choices:
                raise ValueError(f"--{field.name} {value!r} must be one of {', '.join(choices)}")
        for name, least in (("top_k", 1), ("batch_size", 1), ("query_block_size", 1), ("max_rejected", 0), ("threads", 0), ("passes", 0)):
            if (getattr(self, name) or 0) < least:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least {least}")
        unknown = [name for name in self.output_tables if name not in OUTPUTS]
        if unknown or not (self.output_tables or self.only_curvature or self.only_index):
            raise ValueError(f"--outputs {self.outputs!r} must name some of {', '.join(OUTPUTS)}; separate them by commas")
        self._check_sources()
        of_groups = [name for name in self.output_tables if OUTPUTS[name].needs_groups]
        if of_groups and not self.group_feature:
            raise ValueError(f"--outputs {of_groups[0]} needs --group_feature, the feature that names an example's group")
        if self.second_order_groups and (not of_groups or self.normalize != "none" or self.removal != "first_order"):
            raise ValueError("--second_order_groups goes with --outputs group_influence, --normalize none and --removal first_order")
        if self.second_order_groups and self.curvature == "identity":
            raise ValueError("--second_order_groups needs a curvature of the data; use --curvature exact, not identity")
        self._check_checkpoints()
        self._check_saved()
        if not self.weight_decay >= 0:
            raise ValueError(f"--weight_decay {self.weight_decay} must be at least 0")
        if not self.label_features or not all(self.label_features):
            raise ValueError(f"--label_feature {self.label_feature!r} must name a feature")
        if self.preprocess is not None and ":" not in self.preprocess:
            raise ValueError(f"--preprocess {self.preprocess!r} is not an import path; write it as 'package.module:function'")
        if self.preprocess is not None and "=" in (self.input_features or ""):
            raise ValueError(
                f"--input_features {self.input_features!r}: with --preprocess, name the features it needs, separated by commas; "
                "the function itself decides which feeds which input"
            )
        if self.curvature != "arnoldi" and (self.block_size is not None or self.matrix != "gauss_newton"):
            raise ValueError(f"--block_size and --matrix are of arnoldi, not of {self.curvature}; leave them out")
        projects = self.projection_dim is not None or self.projection != "hadamard"
        if self.curvature != "random_projection" and projects:
            raise ValueError(f"--projection_dim and --projection are of random_projection, not of {self.curvature}; leave them out")
        self.make_curvature()
        self.finish_options()
        self.score_options()
        self.input_mapping()
        for name in ("tolerance", "max_iterations"):
            value = getattr(self, name)
            able = (*_ITERATIVE, "gauss_newton_cg") if name == "tolerance" else _ITERATIVE
            if value is not None and self.curvature not in able:
                raise ValueError(f"--{name} is of iterative solvers: --curvature {' or '.join(able)}, not {self.curvature}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"--tolerance {self.tolerance} must be between 0 and 1")
        if self.max_iterations is not None and self.max_iterations < 1:
            raise ValueError(f"--max_iterations {self.max_iterations} must be at least 1")
        if self.fisher is not None and self.curvature not in (*_BY_LAYER, "random_projection"):
            raise ValueError(f"--fisher is of --curvature {', '.join(_BY_LAYER)} or random_projection, not {self.curvature}")
        if self.rank is not None and self.curvature == "random_projection":
            raise ValueError(f"--rank {self.rank}: of random_projection it is --projection_dim that decides")
        if self.rank is not None and (self.curvature in ("identity", *_ITERATIVE) or (self.curvature in _BY_LAYER and not self.only_index)):
            raise ValueError(
                f"--rank is of a matrix's eigenvalues; use it with --curvature gauss_newton, exact or arnoldi, not {self.curvature} "
                "(which takes it for an index alone)"
            )
        if self.removal == "newton" and self.curvature in _NOT_WHOLE:
            raise ValueError(f"--removal newton needs the whole matrix; use --curvature gauss_newton or exact, not {self.curvature}")
        if self.removal == "newton" and self.n_samples is not None:
            raise ValueError("--removal newton takes an example out of the whole training set's curvature; leave out --n_samples")
        if self.removal == "newton" and {"group_self_influence", "group_vectors"} & set(self.output_tables):
            raise ValueError("--removal newton is of single examples; for groups' vectors and self-influence use --removal first_order")

    def _check_sources(self) -> None:
        """Whether the files that the outputs are made from are given."""
        from beam_influence.influence_ops.scoring.outputs.table import tables_of_scores, tables_of_test_points

        of_tests = [name for name in self.output_tables if name in tables_of_test_points()]
        if of_tests and self.test is None:
            raise ValueError(f"--outputs {of_tests[0]} needs --test, the test points to explain")
        self._check_index()
        if self.index is None and self.influence_vectors_path is None:
            if self.train is None:
                raise ValueError("--train is needed: the files of the training set")
        else:
            option = "influence_vectors_path" if self.index is None else "index"
            read = ("train", "curvature_path", "group_feature", *(() if self.index is None else ("influence_vectors_path",)))
            clashing = [name for name in read if getattr(self, name) is not None]
            if clashing:
                raise ValueError(f"--{option} takes the place of --{clashing[0]}; leave that out")
            if getattr(self, option).rstrip("/") == self.output.rstrip("/"):
                raise ValueError(f"--output {self.output!r} would replace the {option.split('_path')[0]} that is read; give another folder")
            others = [name for name in self.output_tables if name not in tables_of_scores()]
            if others or self.removal != "first_order":
                raise ValueError(
                    f"--{option} gives {' and '.join(tables_of_scores())}, first order; "
                    f"for {others[0] if others else 'removal ' + self.removal} give --train"
                )
        if self.passes and self.curvature == "arnoldi":
            if self.n_samples is not None:
                raise ValueError(
                    f"--n_samples {self.n_samples} is of arnoldi over a sample; with --passes it reads all examples: leave one out"
                )
        elif self.passes or self.solver_passes:
            others = [name for name in self.output_tables if name not in tables_of_test_points()]
            if self.curvature not in _BY_PASSES or others or self.normalize != "none" or self.second_order_groups:
                raise ValueError(
                    f"passes over the data solve test points, with --curvature {' or '.join(_BY_PASSES)}: --outputs "
                    f"{', '.join(tables_of_test_points())}, not normalised, to first order; for the rest use --passes 0, which gives "
                    "EK-FAC's answer or the sample's"
                )
        if self.only_curvature and self.passes and self.curvature != "arnoldi":
            raise ValueError(f"--passes of {self.curvature} solves test points, and fit has none; leave it out")
        if self.only_curvature and (self.curvature_path or self.influence_vectors_path or self.curvature == "identity"):
            raise ValueError(
                "there is no curvature to fit: leave --curvature_path and --influence_vectors_path out, and name a --curvature"
            )

    def _check_saved(self) -> None:
        """Whether options that decide how a curvature is fitted are given where a saved one is used."""
        saved = next((name for name in ("curvature_path", "influence_vectors_path", "index", "update") if getattr(self, name)), None)
        if saved is None:
            return
        given = [field.name for field in dataclasses.fields(self) if field.metadata["fits"] and getattr(self, field.name) != field.default]
        given += [name for name in ("passes", "tolerance") if getattr(self, name) is not None and not self.solver_passes]
        if "passes" in given and self.curvature in _BY_PASSES:
            given.remove("passes")  # 0: the saved curvature's own answer
        if given:
            raise ValueError(
                f"--{given[0]} {getattr(self, given[0])} decides how a curvature is fitted, and --{saved} uses one that was fitted; "
                "leave one of them out"
            )

    def _check_checkpoints(self) -> None:
        """Whether the options of checkpoints fit each other."""
        rates, count = self.checkpoint_rates, len(self.checkpoint_paths)
        if rates is not None and len(rates) != count:
            raise ValueError(f"--checkpoint_weights {self.checkpoint_weights!r} must be {count} numbers, one for each of --checkpoints")
        if self.checkpoint_paths and (self.removal != "first_order" or self.second_order_groups):
            raise ValueError("--checkpoints sums influence of first order; leave --removal and --second_order_groups out")

    @property
    def checkpoint_paths(self) -> tuple[str, ...]:
        """The names in `checkpoints`."""
        return tuple(path.strip() for path in (self.checkpoints or "").split(",") if path.strip())

    @property
    def checkpoint_rates(self) -> tuple[float, ...] | None:
        """The numbers in `checkpoint_weights`."""
        if self.checkpoint_weights is None:
            return None
        try:
            rates = tuple(float(rate) for rate in self.checkpoint_weights.split(","))
        except ValueError:
            rates = ()
        if not rates or not all(0 < rate < float("inf") for rate in rates):
            raise ValueError(f"--checkpoint_weights {self.checkpoint_weights!r} must be numbers above 0, separated by commas")
        return rates

    def _check_index(self) -> None:
        """Whether the options of an index fit each other."""
        if self.update and not self.only_index:
            raise ValueError("--update adds to an index; use it with the command index")
        if self.only_index:
            if self.test is not None:
                raise ValueError("--test is of the command query; an index is of training examples")
            if self.update and (self.curvature_path is not None or self.overwrite):
                raise ValueError("--update keeps the index and its curvature; leave --curvature_path and --overwrite out")
            if self.normalize != "none" or self.removal != "first_order":
                raise ValueError("an index holds plain influence, first order; leave --normalize and --removal out")
            saved = self.update or self.curvature_path is not None
            if not saved and self.curvature not in _INDEXED and ":" not in self.curvature:
                raise ValueError(f"--curvature {self.curvature} gives no embedding of r numbers for an index; use {', '.join(_INDEXED)}")
        if self.index is not None and self.normalize != "none":
            raise ValueError("an index holds plain influence; leave --normalize out")
        if self.search == "faiss":
            if self.index is None or self.output_tables != ("top_k",):
                raise ValueError("--search faiss finds the top_k in an index; use it with --index and --outputs top_k, or leave it out")
            if importlib.util.find_spec("faiss") is None:
                raise ValueError("--search faiss needs FAISS; install it (pip install faiss-cpu), or use --search linear")

    @property
    def only_index(self) -> bool:
        """Whether the run makes an index, or adds to one (the command `index`)."""
        return self.outputs.strip() == ONLY_INDEX

    @property
    def solver_passes(self) -> int:
        """How many passes solve the test points."""
        return 0 if self.only_curvature else solving_passes(self.curvature, self.passes)

    @property
    def only_curvature(self) -> bool:
        """Whether the run ends with the saved curvature (the command `fit`)."""
        return self.outputs.strip() == ONLY_CURVATURE

    @property
    def output_tables(self) -> tuple[str, ...]:
        """The names in `outputs`; none for `fit` and `index`."""
        if self.only_curvature or self.only_index:
            return ()
        return tuple(name.strip() for name in self.outputs.split(",") if name.strip())

    @property
    def work_folder(self) -> str:
        """Where temporary files go: a folder of this run's own, since it is emptied before and after."""
        if self.work_dir is None:
            return f"{self.output.rstrip('/')}/.work"
        return f"{self.work_dir.rstrip('/')}/beam-influence-{hashlib.sha256(self.output.encode()).hexdigest()[:16]}"

    def make_curvature(self) -> Curvature:
        """The curvature, not fitted yet."""
        from beam_influence.influence_ops.curvature import FittedOnSample, curvature_by_name
        from beam_influence.influence_ops.curvature.arnoldi import DEFAULT_RANK, Arnoldi, ArnoldiOptions
        from beam_influence.influence_ops.curvature.conjugate_gradient import ConjugateGradient
        from beam_influence.influence_ops.curvature.random_projection import DEFAULT_DIM, ProjectionOptions, RandomProjection

        settings: dict[str, Any] = {"fisher": self.fisher or "signed", "seed": self.seed} if self.curvature in _BY_LAYER else {}
        curvature = curvature_by_name(self.curvature, self.n_samples, self.seed, settings)
        of_sample = curvature.inner if isinstance(curvature, FittedOnSample) else curvature
        if isinstance(of_sample, RandomProjection):
            dim = DEFAULT_DIM if self.projection_dim is None else self.projection_dim
            try:
                kind, fisher = typing.cast(Any, self.projection), typing.cast(Any, self.fisher or "expected")
                of_sample.options = ProjectionOptions(dim, kind, fisher, self.seed)
            except ValueError as error:
                raise ValueError(f"--{error}") from error
        if isinstance(curvature, ConjugateGradient):
            curvature.tolerance = self.tolerance or curvature.tolerance
            curvature.max_iterations = self.max_iterations or curvature.max_iterations
        if isinstance(curvature, Arnoldi):
            try:
                rank = self.rank or (_INDEX_RANK if self.only_index else DEFAULT_RANK)
                options = ArnoldiOptions(rank, typing.cast(Any, self.matrix), self.block_size, self.seed)
                curvature.options = options
                return curvature.over_all(self.passes) if self.passes else curvature
            except ValueError as error:
                raise ValueError(f"--{error}") from error
        return curvature

    def finish_options(self) -> FinishOptions:
        """The curvature's options."""
        from beam_influence.influence_ops.curvature import FinishOptions

        damping: float | str = self.damping
        try:
            damping = float(self.damping)
        except ValueError:
            pass  # a rule's name, which FinishOptions checks
        try:
            return FinishOptions(damping, self.removal == "newton", self.rcond, self.rank)
        except ValueError as error:
            raise ValueError(f"--{error}") from error

    def score_options(self) -> ScoreOptions:
        """The scores' options."""
        from beam_influence.influence_ops.scoring.scores import ScoreOptions

        try:
            return ScoreOptions(typing.cast(Any, self.normalize), typing.cast(Any, self.removal), tolerance=self.score_tolerance)
        except ValueError as error:
            raise ValueError(f"--{error}") from error

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

    def as_json(self) -> dict[str, Any]:
        """All options, for the manifest; without passwords and tokens in addresses."""
        from beam_influence.influence_ops.redact import without_secrets

        return {name: without_secrets(value) if isinstance(value, str) else value for name, value in dataclasses.asdict(self).items()}


def solving_passes(curvature: str, passes: int | None) -> int:
    """How many passes solve the test points, by these options."""
    if curvature not in _BY_PASSES:
        return 0
    return _DEFAULT_PASSES if passes is None and curvature == "gauss_newton_cg" else passes or 0


def option_type(field: dataclasses.Field, config: type = InfluenceConfig) -> type:
    """The plain type of the value of one of `config`'s options: str, int, float or bool."""
    hint = _hints(config)[field.name]
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)
