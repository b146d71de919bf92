"""Tape: the operations that a function of tensors makes, made again on other tensors without the function.

A step of a stack of small networks spends much of its time on Python: modules, `vmap`, autograd's bookkeeping.  What
all that comes to is one list of operations, the same at every step, so it is written down once and run as it stands.

A tape cannot hold operations whose result Python looks at (`item`, and so `float` and `if`) or whose shape depends on
values, nor changes in place of what the function was given.  Nor is it taken on trust: its first result is held against
the function's own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from neurofleet.errors import NeurofleetError, ResourceError

REFUSED = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-9}  # relative to the largest number of a result
TRANSPOSE, BMM, INDEX = torch.ops.aten.transpose.int, torch.ops.aten.bmm.default, torch.ops.aten.index.Tensor


class NotTapedError(NeurofleetError):
    """What the function does follows from more than the shapes of its tensors."""


def record(function: Callable[..., Any], *inputs: Any, compiled: bool = False) -> tuple[Any, Tape]:
    """What `function` makes of these inputs (tensors, in dicts and sequences), and a tape that makes it of others.

    compiled: by torch.compile, at the tape's first call

    Raises:
        NotTapedError: see this module.
    """
    recorder = _Recorder(tree_flatten(inputs)[0])
    with recorder:
        first = function(*inputs)
    results, structure = tree_flatten(first)
    graph = recorder.finished(results)
    return first, Tape(function, _compiled(graph) if compiled else graph.forward, structure)


class Tape:
    def __init__(self, function: Callable[..., Any], run: Callable[..., Any], structure: Any) -> None:
        self._function, self._run, self._structure = function, run, structure
        self._is_proven = False

    def __call__(self, *inputs: Any) -> Any:
        """The result for other inputs of the same structure, shapes and types, without gradients of its own.

        Raises:
            NotTapedError: it is not what the function makes of them.
        """
        with torch.no_grad():
            results = self._run(*tree_flatten(inputs)[0])
        if not self._is_proven:
            expected, _ = tree_flatten(self._function(*inputs))
            if not all(map(_close, results, expected)):
                raise NotTapedError("the operations of a step are others at the next step")
            self._is_proven = True
        return tree_unflatten(results, self._structure)


def _compiled(graph: fx.GraphModule) -> Callable[..., Any]:
    run = torch.compile(graph, dynamic=False)

    def checked(*inputs: Tensor) -> Any:
        try:
            return run(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split("\n")[:2])
            raise ResourceError(
                f"search.fuse=compile needs torch.compile to work here, with a C++ compiler, got: {reason}; "
                "use search.fuse=stack"
            ) from error

    return checked


def _close(ours: Tensor | None, expected: Tensor | None) -> bool:
    if ours is None or expected is None:
        return ours is expected
    if not expected.is_floating_point():
        return torch.equal(ours, expected)
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    return bool(torch.allclose(ours, expected, rtol=0, atol=TOLERANCES.get(expected.dtype, 1e-2) * largest))


class _Recorder(TorchDispatchMode):
    """Makes a graph of torch.fx: a node for each input, operation and constant."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants = nn.Module()
        self.made: set[fx.Node] = set()
        self.nodes = WeakIdKeyDictionary()  # of tensors, as long as they live
        for place, one in enumerate(inputs):
            self.nodes[one] = self.graph.placeholder(f"input_{place}")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _follows_from_values(function, args):
            raise NotTapedError(f"{function} follows from values")
        if function._schema.is_mutable and not self._owns(_changed(function, args, kwargs)):
            raise NotTapedError(f"{function} changes what was there before")
        node = self.graph.call_function(function, *map_aggregate((tuple(args), dict(kwargs)), self._node))
        results = function(*args, **kwargs)
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if isinstance(results, Tensor):
            # Under `vmap` every second operation is a view of a tensor as it is.
            self._name(results, node if source is None or not _same(results, source) else self.nodes[source], source)
        elif isinstance(results, tuple | list):
            for place, one in enumerate(results):
                if isinstance(one, Tensor):
                    self._name(one, self.graph.call_function(operator.getitem, (node, place)), source)
        elif any(isinstance(one, Tensor) for one in args):
            raise NotTapedError(f"{function} follows from values")
        return results  # where no tensor is given, as in the promotion of types, it is the same at every step

    def _name(self, tensor: Tensor, node: fx.Node, source: Tensor | None) -> None:
        """source: what the tensor may be a view of"""
        self.nodes[tensor] = node
        is_view = source is not None and tensor.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
        if not is_view or self.nodes[source] in self.made:
            self.made.add(node)

    def _owns(self, tensors: Sequence[Tensor]) -> bool:
        return all(one in self.nodes and self.nodes[one] in self.made for one in tensors)

    def _node(self, value: Any) -> Any:
        """What stands for a value; a tensor that is neither an input nor made on the way is a constant."""
        if not isinstance(value, Tensor):
            return value
        if value not in self.nodes:
            name = f"constant_{len(list(self.constants.buffers()))}"
            self.constants.register_buffer(name, value)
            self.nodes[value] = self.graph.get_attr(name)
        return self.nodes[value]

    def finished(self, results: Sequence[Any]) -> fx.GraphModule:
        self.graph.output(map_aggregate(list(results), self._node))
        for node in self.graph.nodes:
            _untranspose(node)
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.constants, self.graph)


def _follows_from_values(function: Any, args: Sequence[Any]) -> bool:
    if function is INDEX:  # by numbers the shape is known, by a mask it is not
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    return bool(REFUSED & set(function.tags))


def _changed(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to."""
    given = kwargs | dict(zip((one.name for one in function._schema.arguments), args, strict=False))
    written = [one.name for one in function._schema.arguments if one.is_write]
    return [one for one in tree_flatten([given.get(name) for name in written])[0] if isinstance(one, Tensor)]


def _same(ours: Tensor, other: Tensor) -> bool:
    """Whether a tensor is another one under a new name."""
    if ours.dtype != other.dtype or ours.shape != other.shape:
        return False
    return ours.numel() > 0 and ours.stride() == other.stride() and ours.data_ptr() == other.data_ptr()


def _untranspose(node: fx.Node) -> None:
    """(A'B)' as B'A: so gradients of linear layers lie in memory as their weights do."""
    product: Any = node.args[0] if node.target is TRANSPOSE and node.args[1:] == (1, 2) else None
    if isinstance(product, fx.Node) and product.target is BMM:
        left: Any = product.args[0]
        if left.target is TRANSPOSE and left.args[1:] == (1, 2):
            with node.graph.inserting_before(node):
                turned = node.graph.call_function(TRANSPOSE, (product.args[1], 1, 2))
                node.replace_all_uses_with(node.graph.call_function(BMM, (turned, left.args[0])))
