"""Read a network with `torch.fx` and find its groups of interchangeable units.

What the reading meets and does not know freezes the units that flow into it: they are left alone.
The inner layer of `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer` is found without
tracing. Nothing of the model is changed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from earmark.attacks.units import Group, Stage, Weighted
from earmark.errors import HostError
from earmark.hosts import operations
from earmark.hosts.operations import BATCH_NORMS, CONVS


def groups(model: nn.Module) -> list[Group]:
    """Return the groups of interchangeable units of a model.

    Raises:
        HostError: The model has none that can be found.
    """
    found = [*_Reading(model, operations.traced(model)).groups(), *_feed_forward(model)]
    if not found:
        raise HostError(
            f"No interchangeable units were found in {type(model).__name__}.",
            expected="A network that torch.fx can trace, with hidden linear or convolutional "
            "layers.",
        )
    return found


def _feed_forward(model: nn.Module) -> Iterator[Group]:
    """Yield the inner layers of PyTorch's own transformer layers."""
    for _, module in operations.inner_layers(model):
        act = module.activation
        what = type(act) if isinstance(act, nn.Module) else act
        relu = operations.rule(what)[0] == "positive"
        stage = Stage([module.linear1], [module.linear2], positive=relu, sign=False)
        size = module.linear1.out_features
        yield Group(size, [module.linear1], [], [module.linear2], [stage])


@dataclass(frozen=True)
class _Flow:
    """Channels on an edge of the graph.

    Args:
        order: Id of their order.
        scale: Id of their scale.
        kind: "map" (along axis 1, with space after it), "vector" (along axis 1, nothing after it)
            or "last" (along the last axis).
    """

    order: int
    scale: int
    kind: str


class _Sets:
    """Union-find with flags that a union inherits."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.flags: dict[int, set[str]] = {}

    def new(self) -> int:
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def find(self, item: int) -> int:
        while self.parent[item] != item:
            item = self.parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        if one != other:
            self.parent[other] = one
            self.flags.setdefault(one, set()).update(self.flags.pop(other, set()))

    def mark(self, item: int, flag: str) -> None:
        self.flags.setdefault(self.find(item), set()).add(flag)

    def has(self, item: int, flag: str) -> bool:
        return flag in self.flags.get(self.find(item), set())


class _Reading:
    """Walk a traced graph and collect what is tied to what."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.modules = dict(model.named_modules())
        self.order, self.scale = _Sets(), _Sets()
        self.flows: dict[fx.Node, _Flow] = {}
        self.calls: dict[str, tuple[_Flow | None, _Flow]] = {}
        self.producers: list[tuple[_Flow, Weighted]] = []
        self.passengers: list[tuple[_Flow, _Flow, nn.Module]] = []
        self.consumers: list[tuple[_Flow, Weighted]] = []
        self.loose = self._loose(model, graph)
        for node in graph.nodes:
            self._visit(node)

    def _loose(self, model: nn.Module, graph: fx.Graph) -> set[str]:
        """Return names of modules whose parameters are shared or read directly."""
        direct = {
            str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"
        }
        return operations.shared(model) | (direct - {""})

    def _new(self, kind: str) -> _Flow:
        return _Flow(self.order.new(), self.scale.new(), kind)

    def _frozen(self, kind: str) -> _Flow:
        """Return channels that must stay as they are."""
        flow = self._new(kind)
        self._freeze(flow)
        return flow

    def _freeze(self, flow: _Flow) -> None:
        self.order.mark(flow.order, "frozen")
        self._stiffen(flow, "positive", "sign")

    def _stiffen(self, flow: _Flow, *kinds: str) -> None:
        for kind in kinds:
            self.scale.mark(flow.scale, f"no {kind}")

    def _visit(self, node: fx.Node) -> None:
        found: _Flow | None = None
        if node.op == "call_module":
            found = self._module(node)
        elif node.op in ("call_function", "call_method"):
            found = self._function(node)
        else:
            self._give_up(node)
        if found is not None:
            self.flows[node] = found

    def _given(self, node: fx.Node) -> _Flow | None:
        first = node.args[0] if node.args else None
        return self.flows.get(first) if isinstance(first, fx.Node) else None

    def _give_up(self, node: fx.Node) -> None:
        for item in node.all_input_nodes:
            if item in self.flows:
                self._freeze(self.flows[item])

    def _module(self, node: fx.Node) -> _Flow | None:
        name = str(node.target)
        module = self.modules[name]
        given = self._given(node)
        if name in self.loose or len(node.all_input_nodes) != 1:
            self._give_up(node)
            return None
        if isinstance(module, nn.Linear) or (isinstance(module, CONVS) and module.groups == 1):
            return self._weighted(name, module, given)
        if isinstance(module, nn.Flatten):
            return self._flatten(node, given, (module.start_dim, module.end_dim))
        if given is None:
            return None
        depthwise = isinstance(module, CONVS) and module.groups == module.out_channels
        if (isinstance(module, BATCH_NORMS) and given.kind != "last") or depthwise:
            return self._passenger(name, module, given)
        return self._pass(node, given, type(module))

    def _weighted(self, name: str, module: Weighted, given: _Flow | None) -> _Flow:
        dense = isinstance(module, nn.Linear)
        if given is not None:
            if (given.kind == "map") == dense:
                self._freeze(given)
            self.consumers.append((given, module))
        vector = dense and given is not None and given.kind == "vector"
        out = self._new("vector" if vector else "last" if dense else "map")
        if name in self.calls:
            before, after = self.calls[name]
            self._join(after, out)
            if before is None or given is None:
                self._freeze_all(before, given)
            else:
                self._join(before, given)
        else:
            self.producers.append((out, module))
            self.calls[name] = (given, out)
        return out

    def _freeze_all(self, *flows: _Flow | None) -> None:
        for flow in flows:
            if flow is not None:
                self._freeze(flow)

    def _passenger(self, name: str, module: nn.Module, given: _Flow) -> _Flow:
        out = replace(given, scale=self.scale.new())
        if isinstance(module, BATCH_NORMS) and not (module.affine and module.track_running_stats):
            self._stiffen(given, "positive", "sign")
            self._stiffen(out, "positive", "sign")
        if name in self.calls:
            before, after = self.calls[name]
            assert before is not None
            self._join(before, given)
            self._join(after, out)
        else:
            self.passengers.append((given, out, module))
            self.calls[name] = (given, out)
        return out

    def _join(self, one: _Flow, other: _Flow) -> None:
        self.order.join(one.order, other.order)
        self.scale.join(one.scale, other.scale)
        if one.kind != other.kind:
            self._freeze(one)

    def _pass(self, node: fx.Node, given: _Flow, what: Any) -> _Flow | None:  # Any: as in a rule
        """Pass an operation that acts on each channel by itself."""
        kind, pool = operations.rule(what)
        if not kind or (pool and given.kind != "map") or len(node.all_input_nodes) != 1:
            self._give_up(node)
            return None
        if kind != "linear":
            self._stiffen(given, *({"positive", "sign"} - {{"odd": "sign"}.get(kind, kind)}))
        return given

    def _function(self, node: fx.Node) -> _Flow | None:
        given = self._given(node)
        target: Any = node.target  # Any: a function, or a method's name
        if target in (operator.add, operator.iadd, torch.add, "add", "add_"):
            return self._add(node)
        dims = operations.flattening(node)
        if dims is not None:
            return self._flatten(node, given, dims)
        if given is None:
            self._give_up(node)
            return None
        averaged, kept = operations.spatial_mean(node)
        if averaged and not kept and given.kind == "map":
            return replace(given, kind="vector")
        if target in ("size", "dim") or target is getattr:
            return None
        return self._pass(node, given, target)

    def _flatten(
        self, node: fx.Node, given: _Flow | None, dims: tuple[object, object]
    ) -> _Flow | None:
        if given is None or given.kind == "last" or dims != (1, -1):
            self._give_up(node)
            return self._frozen("vector") if dims == (1, -1) else None
        return replace(given, kind="vector")

    def _add(self, node: fx.Node) -> _Flow | None:
        flows = [self.flows.get(item) for item in node.all_input_nodes]
        known = [flow for flow in flows if flow is not None]
        if len(known) != 2 or len(flows) != 2 or node.kwargs:
            self._give_up(node)
            return None
        self._join(*known)
        return known[0]

    def groups(self) -> list[Group]:
        """Return what was found, without groups that reach the outside."""
        found: dict[int, Group] = {}
        for flow, module in self.producers:
            root = self.order.find(flow.order)
            size = module.weight.shape[0]
            group = found.setdefault(root, Group(size))
            group.producers.append(module)
            if group.size != size:
                self.order.mark(root, "frozen")
        for given, _, norm in self.passengers:
            root = self.order.find(given.order)
            if root in found:
                found[root].passengers.append(norm)
        for flow, module in self.consumers:
            root = self.order.find(flow.order)
            if root in found:
                if module not in found[root].consumers:
                    found[root].consumers.append(module)
                if module.weight.shape[1] % found[root].size:
                    self.order.mark(root, "frozen")
        good = {
            root: group
            for root, group in found.items()
            if not self.order.has(root, "frozen") and group.consumers and group.size > 1
        }
        for root, group in good.items():
            group.stages = self._stages(root)
        return list(good.values())

    def _stages(self, root: int) -> list[Stage]:
        stages: dict[int, Stage] = {}

        def stage(flow: _Flow) -> Stage:
            at = self.scale.find(flow.scale)
            return stages.setdefault(
                at,
                Stage(
                    positive=not self.scale.has(at, "no positive"),
                    sign=not self.scale.has(at, "no sign"),
                ),
            )

        def inside(flow: _Flow) -> bool:
            return self.order.find(flow.order) == root

        for flow, module in self.producers:
            if inside(flow):
                stage(flow).writers.append(module)
        for given, out, norm in self.passengers:
            if inside(given):
                stage(given).readers.append(norm)
                stage(out).writers.append(norm)
        for flow, module in self.consumers:
            if inside(flow) and module not in stage(flow).readers:
                stage(flow).readers.append(module)
        return [item for item in stages.values() if item.writers and item.readers]
