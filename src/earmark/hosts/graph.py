"""Find which channels of a network may be reordered together, by the names of their tensors.

`torch.fx` traces the module; no architecture is listed anywhere. The result is plain data: it can
be applied to weight files of any width that descend from the same architecture, without the model.
What the reading does not know freezes the channels that flow into it: they are taken as they stand.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from earmark.hosts import operations
from earmark.hosts.channels import Attention, Channels, Layer
from earmark.hosts.operations import BATCH_NORMS, CONVS
from earmark.hosts.taps import INPUT

_ADDS: set[Any] = {  # Any: as above
    operator.add, operator.iadd, operator.mul, operator.imul, operator.sub,
    torch.add, torch.mul, torch.sub, "add", "add_", "mul", "mul_",
}  # fmt: skip


def channels(model: nn.Module) -> Channels:
    """Read a module's groups of interchangeable channels.

    A module that cannot be traced gives what its known parts give: attention heads and the inner
    layers of PyTorch's own transformer layers.

    Args:
        model: Any module; it is not changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> found = channels(net)
        >>> found.sizes, found.layers[1].columns
        ((4, 2), ((0, 1),))
    """
    reading = _Reading(model)
    for node in operations.traced(model).nodes:
        reading.visit(node)
    reading.inner_layers()
    return reading.found(_attention(model))


def _attention(model: nn.Module) -> tuple[Attention, ...]:
    """Return the attention layers of PyTorch's own kind."""
    return tuple(
        Attention(
            f"{name}.in_proj_weight" if name else "in_proj_weight",
            f"{name}.out_proj.weight" if name else "out_proj.weight",
            module.num_heads,
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
    )


def _around(node: fx.Node) -> set[str]:
    """Return the names of the modules in which a node runs."""
    found = {str(entry[0]) for entry in node.meta.get("nn_module_stack", {}).values()}
    return found | ({str(node.target)} if node.op == "call_module" else set())


@dataclass(frozen=True)
class _Flow:
    """Channels on an edge: runs of groups, and whether space still follows them.

    Args:
        runs: Groups in order.
        kind: "map" (space follows), "flat" (space was flattened in), or "vector".
    """

    runs: tuple[int, ...]
    kind: str


@dataclass
class _Made:
    """A layer as it was met."""

    name: str
    rows: int
    given: _Flow | None
    norm: str = ""
    gains: list[str] = field(default_factory=list)


class _Reading:
    """Walk a traced graph and collect what is tied to what."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.parent: list[int] = []
        self.sizes: list[int] = []
        self.frozen: set[int] = set()
        self.signed: set[int] = set()
        self.flows: dict[fx.Node, _Flow] = {}
        self.made: dict[str, _Made] = {}
        self.vectors: dict[str, tuple[int, ...]] = {}
        self.taps: dict[str, _Flow | None] = {}
        self.shared = operations.shared(model)

    def new(self, size: int) -> int:
        self.parent.append(len(self.parent))
        self.sizes.append(size)
        return len(self.parent) - 1

    def find(self, item: int) -> int:
        while self.parent[item] != item:
            item = self.parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        one, other = sorted((self.find(one), self.find(other)))
        if one == other:
            return
        self.parent[other] = one
        same = self.sizes[one] == self.sizes[other]
        if not same or other in self.frozen:
            self.frozen.add(one)
        if other in self.signed:
            self.signed.add(one)

    def freeze(self, *flows: _Flow | None) -> None:
        for flow in flows:
            for run in flow.runs if flow is not None else ():
                self.frozen.add(self.find(run))

    def visit(self, node: fx.Node) -> None:
        found: _Flow | None = None
        given = [self.flows.get(item) for item in node.all_input_nodes]
        if node.op == "call_module":
            found = self.module(node, given)
        elif node.op in ("call_function", "call_method"):
            found = self.function(node, given)
        else:
            self.freeze(*given)
        if found is not None:
            self.flows[node] = found
        if node.op.startswith("call"):
            for name in _around(node):
                self.taps.setdefault(f"{name}{INPUT}", given[0] if given else None)
                self.taps[name] = found

    def module(self, node: fx.Node, given: list[_Flow | None]) -> _Flow | None:
        name = str(node.target)
        module = self.modules[name]
        first = given[0] if len(given) == 1 else None
        dense = isinstance(module, nn.Linear)
        conv = isinstance(module, CONVS)
        if len(given) != 1 or name in self.shared or name in self.made:
            self.freeze(*given)
            return None
        if dense or (conv and module.groups == 1):
            return self.weighted(name, module, first)
        if isinstance(module, nn.Flatten) and first is not None:
            return self.flatten(first, (module.start_dim, module.end_dim))
        if first is None:
            return None
        norm = isinstance(module, BATCH_NORMS) or (
            isinstance(module, nn.LayerNorm) and first.kind == "vector"
        )
        if norm or (conv and module.groups == module.out_channels == module.in_channels):
            return self.passenger(node, name, module, first)
        return self.channelwise(first, type(module))

    def weighted(self, name: str, module: Any, given: _Flow | None) -> _Flow:  # Any: conv or linear
        size = module.weight.shape[0]
        dense = isinstance(module, nn.Linear)
        if given is not None and (given.kind == "map") == dense:
            self.freeze(given)
        made = _Made(name, self.new(size), given)
        self.made[name] = made
        if module.bias is not None:
            self.vectors[f"{name}.bias"] = (made.rows,)
        return _Flow((made.rows,), "vector" if dense else "map")

    def passenger(self, node: fx.Node, name: str, module: nn.Module, given: _Flow) -> _Flow | None:
        if name in {key.rpartition(".")[0] for key in self.vectors}:
            self.freeze(given)
            return None
        for key, value in module.state_dict().items():
            if value.ndim:
                self.vectors[f"{name}.{key}"] = given.runs
        before = node.all_input_nodes[0]
        only = len(before.users) == 1 and before.op == "call_module"
        if only and isinstance(module, BATCH_NORMS) and str(before.target) in self.made:
            self.made[str(before.target)].norm = name
        return given

    def channelwise(self, given: _Flow, what: Any) -> _Flow | None:  # Any: function, name or class
        kind, pool = operations.rule(what)
        if not kind or (pool and given.kind != "map"):
            self.freeze(given)
            return None
        if kind == "odd":
            self.signed |= {self.find(run) for run in given.runs}
        return given

    def function(self, node: fx.Node, given: list[_Flow | None]) -> _Flow | None:
        target: Any = node.target  # Any: a function, or a method's name
        first = given[0] if given else None
        if target in (getattr, "size", "dim"):
            return None
        if target in _ADDS:
            return self.add(node, given)
        if target in (torch.cat, "cat") and None not in given:
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            known = [flow for flow in given if flow is not None]
            if dim == 1 and len({flow.kind for flow in known}) == 1 and known[0].kind != "flat":
                return _Flow(tuple(run for flow in known for run in flow.runs), known[0].kind)
        if first is None or len(given) != 1:
            self.freeze(*given)
            return None
        dims = operations.flattening(node)
        if dims is not None:
            return self.flatten(first, dims)
        averaged, kept = operations.spatial_mean(node)
        if averaged and first.kind == "map":
            return first if kept else _Flow(first.runs, "vector")
        return self.channelwise(first, target)

    def add(self, node: fx.Node, given: list[_Flow | None]) -> _Flow | None:
        known = [flow for flow in given if flow is not None]
        if len(known) == len(node.args) == 1 and len(given) == 1:
            return known[0]  # pragma: no cover - fx always gives two arguments
        if len(known) == 1 and len(given) == 1 and not isinstance(node.args[1], fx.Node):
            return known[0]
        if len(given) != len(known) or not known or len({len(flow.runs) for flow in known}) != 1:
            self.freeze(*given)
            return None
        for flow in known[1:]:
            for one, other in zip(known[0].runs, flow.runs, strict=True):
                self.join(one, other)
        return known[0]

    def flatten(self, given: _Flow, dims: tuple[object, object]) -> _Flow | None:
        if given.kind != "map" or dims != (1, -1):
            if given.kind == "map" or dims != (1, -1):
                self.freeze(given)
                return None
            return given
        return _Flow(given.runs, "flat")

    def inner_layers(self) -> None:
        """Add the inner layers of PyTorch's own transformer layers, which are not traced."""
        for name, module in operations.inner_layers(self.modules[""]):
            if f"{name}.linear1" in self.made:
                continue
            inner = self.weighted(f"{name}.linear1", module.linear1, None)
            outer = self.weighted(f"{name}.linear2", module.linear2, inner)
            self.freeze(outer)

    def found(self, attention: tuple[Attention, ...]) -> Channels:
        """Return what was found, groups numbered anew in the order in which they were met."""
        for name, made in self.made.items():
            weight = self.modules[name].weight
            assert isinstance(weight, torch.Tensor)
            if made.given is not None:
                total = sum(self.sizes[run] for run in made.given.runs)
                if weight.shape[1] % total or (
                    made.given.kind != "flat" and weight.shape[1] != total
                ):
                    self.freeze(made.given)
        roots = sorted({self.find(item) for item in range(len(self.parent))})
        number = {root: i for i, root in enumerate(roots)}
        layers = []
        for name, made in self.made.items():
            columns = None
            if made.given is not None:
                total = sum(self.sizes[run] for run in made.given.runs)
                each = max(1, self.modules[name].weight.shape[1] // total)
                columns = tuple((number[self.find(run)], each) for run in made.given.runs)
            layers.append(
                Layer(
                    f"{name}.weight" if name else "weight",
                    number[self.find(made.rows)],
                    columns,
                    made.norm,
                    float(getattr(self.modules.get(made.norm), "eps", 0.0)) if made.norm else 0.0,
                )
            )
        return Channels(
            tuple(self.sizes[root] for root in roots),
            frozenset(number[self.find(item)] for item in self.frozen),
            frozenset(number[self.find(item)] for item in self.signed),
            tuple(layers),
            {
                name: tuple(number[self.find(run)] for run in runs)
                for name, runs in self.vectors.items()
            },
            attention,
            {
                name: tuple(number[self.find(run)] for run in flow.runs)
                for name, flow in self.taps.items()
                if flow is not None and flow.kind != "flat"
            },
        )
