"""The list of schemes, locks, attacks and forgeries: one line each, loaded when used.

A third party adds to it through the entry-point groups ``earmark.schemes``, ``earmark.locks``,
``earmark.attacks`` and ``earmark.forgeries``. Listings, help, sweeps and the conformance tests
follow from this list.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from earmark.errors import ExtraError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from earmark.attacks.base import Attack
    from earmark.locks.base import Lock
    from earmark.schemes.base import Scheme

SCHEMES: dict[str, str] = {
    "adi": "earmark.schemes.adi:Adi",
    "deepmarks": "earmark.schemes.deepmarks:DeepMarks",
    "deepsigns": "earmark.schemes.deepsigns:DeepSigns",
    "deepsigns-blackbox": "earmark.schemes.deepsigns_blackbox:DeepSignsBlackBox",
    "deepsigns-blackbox-paper": "earmark.schemes.deepsigns_blackbox_paper:DeepSignsBlackBoxPaper",
    "deepsigns-paper": "earmark.schemes.deepsigns_paper:DeepSignsPaper",
    "deepwater": "earmark.schemes.deepwater:DeepWater",
    "mtlsign": "earmark.schemes.mtlsign:MtlSign",
    "uchida": "earmark.schemes.uchida:Uchida",
}

LOCKS: dict[str, str] = {
    "dsn": "earmark.locks.dsn:Dsn",
    "dsn-paper": "earmark.locks.dsn_paper:DsnPaper",
}

ATTACKS: dict[str, str] = {
    "cast": "earmark.attacks.quantize:Cast",
    "cleanse-patches": "earmark.attacks.unlearn:CleansePatches",
    "collapse": "earmark.attacks.features:Collapse",
    "collude": "earmark.attacks.merge:Collude",
    "distill": "earmark.attacks.distill:Distill",
    "distill-attention": "earmark.attacks.unlearn:DistillAttention",
    "distill-features": "earmark.attacks.features:DistillFeatures",
    "dummies": "earmark.attacks.obfuscate:Dummies",
    "factor": "earmark.attacks.refactor:Factor",
    "filter-queries": "earmark.attacks.wrappers:FilterQueries",
    "fine-prune": "earmark.attacks.unlearn:FinePrune",
    "finetune": "earmark.attacks.finetune:FineTune",
    "flip-signs": "earmark.attacks.obfuscate:FlipSigns",
    "fold-norms": "earmark.attacks.refactor:FoldNorms",
    "jacobian-augmentation": "earmark.attacks.distill:Augment",
    "knockoff": "earmark.attacks.distill:Knockoff",
    "launder": "earmark.attacks.unlearn:Launder",
    "merge": "earmark.attacks.merge:Merge",
    "mix-units": "earmark.attacks.refactor:MixUnits",
    "noise": "earmark.attacks.noise:Noise",
    "obfuscate": "earmark.attacks.obfuscate:Obfuscate",
    "overwrite": "earmark.attacks.overwrite:Overwrite",
    "permute": "earmark.attacks.obfuscate:Permute",
    "preprocess": "earmark.attacks.wrappers:Preprocess",
    "prune": "earmark.attacks.prune:Prune",
    "prune-adversarially": "earmark.attacks.unlearn:PruneAdversarially",
    "prune-channels": "earmark.attacks.prune:PruneChannels",
    "quantize": "earmark.attacks.quantize:Quantize",
    "quantize-dynamic": "earmark.attacks.quantize:QuantizeDynamic",
    "refit": "earmark.attacks.finetune:Refit",
    "regularize": "earmark.attacks.retune:Regularize",
    "reset-tail": "earmark.attacks.features:ResetTail",
    "retrain": "earmark.attacks.distill:Retrain",
    "scale": "earmark.attacks.obfuscate:Scale",
    "scramble": "earmark.attacks.features:Scramble",
    "shift-weights": "earmark.attacks.retune:ShiftWeights",
    "smooth-labels": "earmark.attacks.retune:SmoothLabels",
    "train-adversarially": "earmark.attacks.retune:TrainAdversarially",
    "transfer": "earmark.attacks.distill:Transfer",
    "transformer-gauge": "earmark.attacks.refactor:TransformerGauge",
}

FORGERIES: dict[str, str] = {
    "center-fit": "earmark.bench.forgeries:CenterFit",
    "hash-grinding": "earmark.bench.forgeries:HashGrinding",
    "head-fit": "earmark.bench.forgeries:HeadFit",
    "key-grinding": "earmark.bench.forgeries:KeyGrinding",
    "passport-fit": "earmark.bench.forgeries:PassportFit",
    "pre-registration": "earmark.bench.forgeries_log:PreRegistration",
    "replay": "earmark.bench.forgeries_log:Replay",
    "sign-fit": "earmark.bench.forgeries:SignFit",
    "transferable-triggers": "earmark.bench.forgeries:TransferableTriggers",
    "trigger-selection": "earmark.bench.forgeries:TriggerSelection",
}

_KINDS: dict[str, dict[str, str]] = {
    "scheme": SCHEMES,
    "lock": LOCKS,
    "attack": ATTACKS,
    "forgery": FORGERIES,
}
_GROUPS = {"forgery": "earmark.forgeries"}


def names(kind: str) -> tuple[str, ...]:
    """Return the names of one kind, ours and third parties'.

    Args:
        kind: "scheme", "lock", "attack" or "forgery".

    Example:
        >>> "mtlsign" in names("scheme")
        True
    """
    return tuple(sorted(_targets(kind)))


EXTRAS: dict[str, frozenset[str]] = {
    "torch": frozenset({"torch", "numpy", "safetensors", "sklearn", "scipy"}),
    "data": frozenset({"PIL"}),
    "service": frozenset({"anyio", "fastapi", "h11", "psycopg", "starlette", "uvicorn"}),
    "evm": frozenset({"eth_hash", "rlp", "trie", "web3"}),
    "tsa": frozenset({"rfc3161_client"}),
}
"""Packages that are no dependencies, by the extra that brings them."""


def _targets(kind: str) -> dict[str, str]:
    group = _GROUPS.get(kind, f"earmark.{kind}s")
    foreign = {item.name: item.value for item in entry_points(group=group)}
    return foreign | _KINDS[kind]


def load(kind: str, name: str) -> type[Any]:  # Any: a Scheme, Lock or Attack class
    """Return the class of that kind and name.

    Raises:
        UnknownNameError: No such name; the message suggests the nearest.
        ExtraError: Its module needs an extra that is not installed.
    """
    targets = _targets(kind)
    if name not in targets:
        near = difflib.get_close_matches(name, targets, n=3)
        raise UnknownNameError(
            f"There is no {kind} called '{name}'.",
            expected=f"Known: {', '.join(sorted(targets)) or 'none'}.",
            hint=f"Did you mean {' or '.join(near)}?" if near else "",
        )
    module, _, attribute = targets[name].partition(":")
    try:
        found: type[Any] = getattr(import_module(module), attribute)  # Any: as above
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("earmark"):
            raise
        raise missing_extra(error.name, f"The {kind} '{name}'") from error
    return found


def missing_extra(module: str, what: str) -> ExtraError:
    """Return the error for a module that is not installed, with the extra that brings it.

    Args:
        module: The module's full name.
        what: What needs it, the first words of the message.

    Example:
        >>> print(missing_extra("web3.types", "This"))
        E501  This needs the package 'web3'. Install it with:  pip install "earmark[evm]"
    """
    package = module.partition(".")[0]
    extra = next((name for name, some in EXTRAS.items() if package in some), "all")
    return ExtraError(
        f"{what} needs the package '{package}'.",
        hint=f'Install it with:  pip install "earmark[{extra}]"',
    )


def _make(kind: str, name: str, settings: Mapping[str, Any]) -> Any:  # Any: as in load
    cls = load(kind, name)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for setting in settings:
        if setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            raise UsageError(
                f"The {kind} '{name}' has no setting '{setting}'.",
                expected=f"It has: {', '.join(known) or 'none'}.",
                hint=f"Did you mean '{near[0]}'?" if near else "",
            )
    return cls(
        **{
            setting: _fitted(f"{setting} of the {kind} '{name}'", str(known[setting].type), value)
            for setting, value in settings.items()
        }
    )


_PLAIN: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "A whole number."),
    "float": ((int, float), "A number."),
    "str": ((str,), "A word; one that reads as a number in quotes: '\"12\"'."),
    "bool": ((bool,), "true or false."),
}


def _fitted(what: str, kind: str, value: Any) -> Any:  # Any: a setting of any type
    """Return a setting as the field's type wants it; types that are not plain are not looked at."""
    plain, _, rest = kind.partition(" | ")
    if value is None and rest == "None":
        return None
    if plain == "tuple[str, ...]":
        made = (value,) if isinstance(value, str) else tuple(value) if _several(value) else None
        if made is None or not all(isinstance(item, str) for item in made):
            raise UsageError(f"Setting {what} is {value!r}.", expected="A name or a list of names.")
        return made
    if plain in _PLAIN and rest in {"", "None"}:
        types, expected = _PLAIN[plain]
        if not isinstance(value, types) or (isinstance(value, bool) and plain != "bool"):
            raise UsageError(f"Setting {what} is {value!r}.", expected=expected)
    return value


def _several(value: object) -> bool:
    return isinstance(value, (list, tuple))


def scheme(name: str, **settings: Any) -> Scheme:  # Any: the scheme's own fields
    """Return a scheme by name, with settings.

    Raises:
        UnknownNameError: No such scheme.
        UsageError: No such setting, or a value that the scheme refuses.
        ExtraError: An extra is missing.
    """
    made: Scheme = _make("scheme", name, settings)
    return made


def lock(name: str, **settings: Any) -> Lock:  # Any: the lock's own fields
    """Return a lock by name, with settings; raises as :func:`scheme`."""
    made: Lock = _make("lock", name, settings)
    return made


def attack(name: str, **settings: Any) -> Attack:  # Any: the attack's own fields
    """Return an attack by name, with settings; raises as :func:`scheme`."""
    made: Attack = _make("attack", name, settings)
    return made
