"""What Beam looks up again for every step of a graph is looked up once a process, so that the tests take less: its views of the options,
for each of which it parses all arguments, and the signatures of functions. Neither depends on anything but what it is asked for."""

from __future__ import annotations

import inspect
import types
import weakref
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, ptransform, util
from apache_beam.typehints import decorators

_view_as, _get_signature = PipelineOptions.view_as, decorators.get_signature
_views: weakref.WeakKeyDictionary[PipelineOptions, dict[type[PipelineOptions], PipelineOptions]] = weakref.WeakKeyDictionary()
_signatures: weakref.WeakKeyDictionary[types.FunctionType, dict[bool, inspect.Signature]] = weakref.WeakKeyDictionary()


def view_as(self: PipelineOptions, cls: type[PipelineOptions]) -> Any:
    views = _views.setdefault(self, {})
    if cls not in views:
        views[cls] = _view_as(self, cls)
    return views[cls]


def get_signature(func: Any) -> inspect.Signature:
    bound = isinstance(func, types.MethodType)
    function = func.__func__ if bound else func
    if not isinstance(function, types.FunctionType):
        return _get_signature(func)
    kept = _signatures.setdefault(function, {})
    if bound not in kept:
        kept[bound] = _get_signature(func)
    return kept[bound]


def keep_lookups() -> None:
    PipelineOptions.view_as = view_as
    for module in (decorators, core, ptransform, util):
        module.get_signature = get_signature  # pyright: ignore[reportAttributeAccessIssue]
