"""Prove which neural network is yours.

Public names, loaded when they are used: importing earmark loads no framework.

============================================  ====================================================
`load_task`, `Task`                           the user's model, loss, batches and evaluation
`scheme`, `lock`, `attack`                    by name, with settings
`embed`, `train`                              the shared trainer, with a mark and without
`ModuleHost`, `FilesHost`                     models in memory and on disk
`Key`, `Vault`                                sealed keys and the owner's folder
`judge`, `Policy`                             from evidence to a verdict
`Evidence`, `Verdict`, `Outcome`              the records that both speak of
============================================  ====================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE: dict[str, str] = {
    "Evidence": "earmark.records",
    "FilesHost": "earmark.hosts.files",
    "Key": "earmark.keys.secret",
    "ModuleHost": "earmark.hosts.module",
    "Outcome": "earmark.records",
    "Policy": "earmark.policy",
    "Task": "earmark.task",
    "Vault": "earmark.vault",
    "Verdict": "earmark.records",
    "attack": "earmark.registry",
    "embed": "earmark.schemes.embedding",
    "judge": "earmark.policy",
    "load_task": "earmark.task",
    "lock": "earmark.registry",
    "scheme": "earmark.registry",
    "train": "earmark.training",
}

__all__ = ["__version__", *sorted(_WHERE)]  # noqa: PLE0604 - the table above is the list


def __getattr__(name: str) -> Any:  # Any: whatever the name stands for
    if name not in _WHERE:
        raise AttributeError(f"module 'earmark' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
