"""The user's function from features as they are stored to arrays that the model takes, run on the worker.

A function `module:function` gets a dictionary {feature name: array [B, ...]} (bytes as object arrays) and returns
one of {model input name: array [B, ...]}, or the array itself for a model of one input. Where it also returns an
entry named as a label, that is the label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from beam_influence.influence_ops.import_path import load_object
from beam_influence.influence_ops.reading.columns import Reasons
from beam_influence.influence_ops.reading.features import FeatureSpec, ModelInput
from beam_influence.influence_ops.reading.resolve_features import fit_result


class _WrongShape(ValueError):
    """A result whose shape is not what the model was found to take."""


class Preprocess:
    """A specification's function, applied so that a bad row is rejected alone.

    Raises:
      ValueError: there is no such function.
    """

    def __init__(self, spec: FeatureSpec):
        assert spec.preprocess is not None
        self._path = spec.preprocess
        self._function = load_object(spec.preprocess)
        if not callable(self._function):
            raise ValueError(f"--preprocess {spec.preprocess!r} is not a function")
        self._shapes = {name: feature.shape for name, feature in spec.inputs}
        self._labels = {feature.name for feature in spec.labels}

    def apply(self, columns: Mapping[str, np.ndarray], reasons: Reasons) -> dict[str, np.ndarray]:
        """The results of the rows that have one; the others are noted in `reasons`."""
        count = len(next(iter(columns.values()))) if columns else 0
        try:
            return self._checked(columns, count)
        except Exception:
            pass  # row by row, so that only the bad ones are lost
        found = []
        for row in range(count):
            try:
                found.append(self._checked({name: column[row : row + 1] for name, column in columns.items()}, 1))
            except _WrongShape as error:
                reasons[row] = ("wrong_shape", str(error))
            except Exception as error:
                reasons[row] = ("preprocess", f"{self._path}: {_reason(error)}")
        return {name: np.concatenate([result[name] for result in found]) for name in found[0]} if found else {}

    def shapes(
        self, columns: Mapping[str, np.ndarray], rows: Sequence[int], model_inputs: Sequence[ModelInput]
    ) -> dict[str, tuple[int, ...]]:
        """The shape of one example of each model input, as most of `rows` give it.

        Raises:
          ValueError: the function fails on all of them, or returns no array for an input; the message is its reason.
        """
        names = [tensor.name for tensor in model_inputs]
        seen: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in names}
        failure: Exception | None = None
        for row in rows:
            try:
                result = self._result({name: column[row : row + 1] for name, column in columns.items()}, names)
            except Exception as error:
                failure = failure or error
                continue
            for name in names:
                seen[name][np.shape(result[name])[1:]] += 1
        if failure is not None and not all(seen.values()):
            raise ValueError(f"--preprocess {self._path!r} fails on the first examples: {_reason(failure)}") from failure
        return {name: counter.most_common(1)[0][0] for name, counter in seen.items() if counter}

    def _result(self, columns: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
        result = self._function(dict(columns))
        if not isinstance(result, Mapping):
            if len(names) != 1:
                raise ValueError(f"it returned a {type(result).__name__}; it must return a dictionary with {', '.join(names)}")
            result = {names[0]: result}
        missing = [name for name in names if name not in result]
        if missing:
            raise ValueError(f"it returned {', '.join(result) or 'nothing'}; the model's input {missing[0]!r} is not among them")
        return {name: value for name, value in result.items() if name in names or name in self._labels}

    def _checked(self, columns: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        # Copied: a function may fill one array again and again, while batches before it wait.
        arrays = {name: np.array(value) for name, value in self._result(columns, list(self._shapes)).items()}
        for name, array in arrays.items():
            wanted = (count, *self._shapes.get(name, array.shape[1:]))
            if array.shape != wanted:
                raise _WrongShape(f"{self._path} returned {name!r} of shape {list(array.shape)}; the first examples gave {list(wanted)}")
        return arrays


def with_results(spec: FeatureSpec, model_inputs: Sequence[ModelInput], shapes: Mapping[str, tuple[int, ...]]) -> tuple:
    """The `inputs` of a specification whose function returns these shapes.

    Raises:
      ValueError: a shape does not fit the model.
    """
    assert spec.preprocess is not None
    return tuple((tensor.name, fit_result(tensor, shapes[tensor.name], spec.preprocess)) for tensor in model_inputs)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
