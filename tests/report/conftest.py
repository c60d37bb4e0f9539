from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def _load():
    path = Path(__file__).with_name("samples.py")
    spec = importlib.util.spec_from_file_location("report_samples", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples():
    return _load()


@pytest.fixture(scope="session")
def case(samples, tmp_path_factory):
    return samples.Case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="session")
def packed(samples, case):
    """Every file of a valid, signed dossier, in memory."""
    from earmark.report.dossier import sealed

    return sealed(case.dossier(attachments={"letter.txt": b"hello"}), signer=samples.IDENTITY)
