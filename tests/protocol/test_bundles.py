"""What other tools read of ours: OMS bundles by `model_signing`, SCITT statements by `scitt_cose`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from world import Party, World

from earmark.errors import FileError, SignatureError
from earmark.protocol import bundles

OWNER, OTHER = Party("owner"), Party("other")


@pytest.fixture
def release(tmp_path):
    pytest.importorskip("model_signing")
    (tmp_path / "release.safetensors").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "public.pem").write_bytes(bundles.public_pem(OWNER.key))
    bundles.sign_release(tmp_path / "release.safetensors", tmp_path / "model.sig", OWNER.key)
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_a_release_is_signed_for_other_tools(release):
    parts = [release / name for name in ("release.safetensors", "model.sig", "public.pem")]
    bundles.verify_release(*parts)
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(parts[0])]
    said = ["--signature", str(parts[1]), "--public_key", str(parts[2])]
    done = subprocess.run([*command, *said], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in release.iterdir()) == [
        "model.sig",
        "public.pem",
        "release.safetensors",
    ], "no private key is left"


@pytest.mark.filterwarnings("ignore")
def test_a_changed_release_or_another_key_is_refused(release):
    model, bundle, public = (
        release / name for name in ("release.safetensors", "model.sig", "public.pem")
    )
    public.write_bytes(bundles.public_pem(OTHER.key))
    with pytest.raises(SignatureError):
        bundles.verify_release(model, bundle, public)
    public.write_bytes(bundles.public_pem(OWNER.key))
    data = bytearray(model.read_bytes())
    data[5000] ^= 1
    model.write_bytes(bytes(data))
    with pytest.raises(SignatureError):
        bundles.verify_release(model, bundle, public)
    with pytest.raises(FileError):
        bundles.sign_release(release / "nothing", bundle, OWNER.key)


def test_the_derived_key_is_always_the_same_and_no_other():
    assert bundles.public_pem(OWNER.key) == bundles.public_pem(OWNER.key)
    assert bundles.public_pem(OWNER.key) != bundles.public_pem(OTHER.key)


def test_a_record_becomes_a_scitt_statement():
    pytest.importorskip("scitt_cose")
    import cbor2

    world = World()
    world.register(OWNER, "M")
    record, other = world.entries[1].record, world.entries[0].record
    made = bundles.scitt_statement(record, OWNER.key)
    bundles.read_scitt_statement(made, record)
    parsed = cbor2.loads(made)  # a third reader
    assert parsed.tag == 18
    protected = cbor2.loads(parsed.value[0])
    assert protected[1] == -8, "EdDSA"
    assert protected[15][1] == f"urn:earmark:key:{OWNER.public}"
    with pytest.raises(SignatureError):
        bundles.read_scitt_statement(made, other)
    for place in range(0, len(made), 7):
        bad = bytearray(made)
        bad[place] ^= 1
        with pytest.raises(SignatureError):
            bundles.read_scitt_statement(bytes(bad), record)
    with pytest.raises(SignatureError):
        bundles.scitt_statement(record, OTHER.key)
