from __future__ import annotations

import json
import os
import random
import zipfile
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction

import pytest

from earmark import codec, report
from earmark.errors import (
    DossierError,
    FileError,
    FormatError,
    OutputError,
    RecordError,
    UsageError,
)
from earmark.hosts.transcript import Transcript
from earmark.ledger.log import SqliteLedger
from earmark.policy import Policy, judge
from earmark.records import Access, Outcome
from earmark.report import (
    archive,
    check_dossier,
    checks,
    ledger_proof,
    pack,
    read_dossier,
    render,
    unpack,
    write_dossier,
)
from earmark.report.checks import check_files
from earmark.report.dossier import SIGNATURE, SIGNED, Manifest, sealed

MANIFEST = "manifest.json"


def refused(contents, file, **options):
    with pytest.raises(DossierError) as caught:
        check_files(contents, **options)
    assert f"'{file}'" in caught.value.what, caught.value.what
    return caught.value


def resealed(contents, **changes):
    """Change files and write a manifest that fits, as a forger would."""
    plain = {k: v for k, v in contents.items() if k not in {MANIFEST, SIGNATURE}}
    for path, data in changes.items():
        plain[path] = data
    return plain | {MANIFEST: Manifest.of(plain).canonical()}


def test_many_counts_are_refused_before_they_are_judged(monkeypatch, case, samples):
    contents = sealed(case.dossier(), signer=samples.IDENTITY)
    most = max(item.evidence.trials for item in case.subjects)
    monkeypatch.setattr(checks, "MAX_TRIALS", 2 * most)  # each of them alone is let through
    assert "in all" in refused(contents, "records/report.json").what
    monkeypatch.undo()
    monkeypatch.setattr(checks, "MAX_PIECES", len(case.subjects))
    assert "parts" in refused(contents, "records/report.json").what
    assert checks.MAX_TRIALS <= 1 << 22


@pytest.mark.parametrize("file", [MANIFEST, "records/report.json", "records/trials.json"])
def test_a_record_of_many_bytes_is_not_read(case, samples, file):
    contents = sealed(case.dossier(), signer=samples.IDENTITY)
    large = b"[" + b"0," * (1 << 21) + b"0]"
    changed = contents | {file: large} if file == MANIFEST else resealed(contents, **{file: large})
    assert "bytes; at most" in refused(changed, file).what


def test_what_is_no_record_is_refused_before_it_is_written_again(monkeypatch):
    def never(_):
        raise AssertionError

    monkeypatch.setattr(codec, "canonical", never)
    with pytest.raises(RecordError, match="JSON object"):
        Manifest.from_bytes(b"[[],[]]")


def test_a_dossier_is_written_and_verified(tmp_path, case, samples):
    content = case.dossier(attachments={"letter.txt": b"hello"})
    write_dossier(tmp_path / "d", content, signer=samples.IDENTITY)
    found = check_dossier(tmp_path / "d", vkey=case.proof.vkey)
    assert {item.name for item in found if item.status == checks.VERIFIED} == {
        "files",
        "signature",
        "records",
        "commitment",
        "release",
        "ledger key",
        "receipt",
        "history",
        "order",
        "claim",
        "evidence",
        "verdict",
        "report",
    }
    assert read_dossier(tmp_path / "d") == content
    assert (tmp_path / "d" / "report.html").read_text(encoding="utf-8") == render(content.report)
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o755
    assert [item.name for item in tmp_path.iterdir()] == ["d"]


def test_what_is_not_proven_is_noted(case):
    content = case.dossier(report=None, trials=())
    proof = replace(
        case.proof, receipts={k: v for k, v in case.proof.receipts.items() if k != "claim"}
    )
    found = check_files(sealed(replace(content, proof=proof)))
    notes = {item.name for item in found if item.status == checks.NOTE}
    assert notes == {
        "binding", "count", "nonce", "tried", "signature", "ledger key", "receipt", "report", "suspect",
    }  # fmt: skip
    assert str(found[0]).startswith("verified  files")
    (tried,) = [item.detail for item in found if item.name == "tried"]
    assert "1 key and 4 suspects" in tried


def positions(data, count, seed):
    drawn = random.Random(seed)
    return sorted({0, len(data) - 1, *(drawn.randrange(len(data)) for _ in range(count))})


def flip_and_check(contents, count):
    for number, (path, data) in enumerate(contents.items()):
        for place in positions(data, count, number):
            for mask in (0x01, 0x20, 0x80):
                changed = bytearray(data)
                changed[place] ^= mask
                refused({**contents, path: bytes(changed)}, path)


def test_a_changed_byte_anywhere_is_found_and_its_file_named(packed):
    flip_and_check(packed, 8)


@pytest.mark.slow
def test_every_changed_byte_is_found(packed):
    small = {k: v for k, v in packed.items() if len(v) < 4096}
    for path in small:
        for place in range(len(packed[path])):
            changed = bytearray(packed[path])
            changed[place] ^= 1 << (place % 8)
            refused({**packed, path: bytes(changed)}, path)
    flip_and_check(packed, 400)


def test_lost_added_and_cut_files_are_found(packed):
    for path in packed:
        if path == SIGNATURE:
            continue
        lacking = {k: v for k, v in packed.items() if k != path}
        refused(lacking, path)
        refused({**packed, path: packed[path][:-1]}, path)
    refused({**packed, "records/more.json": b"{}"}, "records/more.json")


def test_a_manifest_cannot_be_rewritten_in_another_form(packed):
    loose = json.dumps(json.loads(packed[MANIFEST]), indent=1).encode()
    refused({**packed, MANIFEST: loose}, MANIFEST)


def test_another_signer_is_refused(packed, case):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    forged = stranger.sign(SIGNED + packed[MANIFEST]).hex().encode()
    refused({**packed, SIGNATURE: forged}, SIGNATURE)
    refused({**packed, SIGNATURE: packed[SIGNATURE].upper()}, SIGNATURE)
    refused({**packed, SIGNATURE: b"\xff"}, SIGNATURE)


def test_a_pinned_ledger_key_must_be_the_one(packed, tmp_path):
    with SqliteLedger.create(tmp_path / "other.sqlite", "example.com/acme") as other:
        refused(packed, "ledger/vkey.txt", vkey=other.vkey)


def _stronger(case):
    """Evidence that the claim does not name, with its own good verdict."""
    found = replace(case.evidence, hits=1024)
    return {"evidence": found, "verdict": judge(found, case_policy(case))}


def case_policy(case):
    return case.dossier().policy


def recounted(case, **changes):
    """Let the claimant change the evidence and make every other record agree with it."""
    found = replace(case.evidence, **changes)
    return {
        "evidence": found,
        "verdict": judge(found, case.dossier().policy),
        "claim": replace(
            case.claim, evidence=found.digest(), shards=tuple(range(case.opening.layout.shards))
        ),
    }


INFLATED = {
    "another chance": {"chance": Fraction(1, 1 << 20)},
    "no shards": {"shards": ()},
    "shards beyond the key": {"shards": (0, 8)},
    "more trials than the shards hold": {"shards": (0, 1, 3)},
    "signs out of nothing": {"hits": 0, "trials": 0, "weights": (1,) * 2000, "score": 2000},
}


@pytest.mark.parametrize("name", INFLATED)
def test_evidence_cannot_be_inflated(case, name):
    receipts = {k: v for k, v in case.proof.receipts.items() if k != "claim"}
    changes = recounted(case, **INFLATED[name])
    content = replace(
        case.dossier(report=None, trials=()), proof=replace(case.proof, receipts=receipts)
    )
    check_files(sealed(content))
    with pytest.raises(DossierError, match=r"records/(evidence|claim)\.json"):
        check_files(sealed(replace(content, **changes)))


@pytest.mark.parametrize("name", INFLATED)
def test_nor_can_that_of_another_model_on_the_page(case, name):
    report = case.dossier().report
    other = replace(report.subjects[0], name="another model")
    found = replace(other.evidence, **INFLATED[name])
    made = replace(other, evidence=found, verdict=judge(found, report.policy))
    for subject, good in ((other, True), (made, False)):
        shown = replace(report, subjects=(*report.subjects, subject))
        contents = sealed(replace(case.dossier(), report=shown))
        if good:
            check_files(contents)
            continue
        with pytest.raises(DossierError, match=r"records/report\.json"):
            check_files(contents)


def test_what_nobody_bound_and_schemes_of_others_are_noted(case):
    free = replace(case.release, beacon=None)
    told = render(replace(case.dossier().report, release=free))
    assert "Nothing here shows that the answers were drawn" in told
    found = replace(case.evidence, scheme="third-party")
    main = replace(case.subjects[0], evidence=found, verdict=judge(found, case_policy(case)))
    told = render(replace(case.dossier().report, subjects=(main,)))
    assert "is judged as if it were binomial" in told
    assert "is exactly binomial" not in told


def test_a_services_transcript_is_held_to_the_suspects_digest(case, tmp_path):
    path = tmp_path / "transcript.jsonl"
    asked = Transcript(path, "https://api.example/v1 " + "ab" * 32)
    asked.add("00" * 32, 3)
    changes = recounted(case, access=Access.LABELS, suspect=asked.digest())
    changes["claim"] = replace(changes["claim"], suspect=asked.digest())
    receipts = {k: v for k, v in case.proof.receipts.items() if k != "claim"}
    proof = replace(case.proof, receipts=receipts)
    content = replace(case.dossier(report=None, trials=(), proof=proof), **changes)

    def check(data):
        return check_files(sealed(replace(content, attachments={"transcript.jsonl": data})))

    whole = path.read_bytes()
    found = {item.name: item for item in check(whole)}
    assert "1 answers of 'https://api.example/v1'" in found["transcript"].detail
    assert "attachments" not in found
    for data in (whole.replace(b'"label": 3', b'"label": 4'), whole[:-9], b"", b"{}"):
        with pytest.raises(DossierError, match=r"attachments/transcript\.jsonl"):
            check(data)


def test_files_that_nothing_looks_at_are_refused(case):
    contents = case.dossier().files()
    for name in ("index.html", "records/other.json", "ledger/more.txt"):
        more = {**contents, name: b"<script>"}
        more["manifest.json"] = Manifest.of(more).canonical()
        with pytest.raises(DossierError, match=name):
            check_files(more)
    kind = {**contents, "README.txt": b"Send money."}
    kind["manifest.json"] = Manifest.of(kind).canonical()
    assert "readme" in {item.name for item in check_files(kind)}


FORGERIES = {
    "more hits": (_stronger, "records/evidence.json"),
    "kinder policy": (
        lambda c: {"policy": Policy(bits=20.0), "verdict": judge(c.evidence, Policy(bits=20.0))},
        "records/report.json",
    ),
    "kinder verdict": (
        lambda c: {"verdict": replace(c.verdict, bits=900.0)},
        "records/verdict.json",
    ),
    "other outcome": (
        lambda c: {"verdict": replace(c.verdict, outcome=Outcome.NOT_SHOWN)},
        "records/verdict.json",
    ),
    "no limits": (lambda c: {"verdict": replace(c.verdict, limits=())}, "records/verdict.json"),
    "other policy": (lambda c: {"policy": Policy(bits=1.0)}, "records/verdict.json"),
    "other opening": (
        lambda c: {"opening": replace(c.opening, salt="00" * 32)},
        "records/opening.json",
    ),
    "earlier commitment": (
        lambda c: {"commitment": replace(c.commitment, created="2020-01-01T00:00:00Z")},
        "records/commitment.json",
    ),
    "other file": (
        lambda c: {"release": replace(c.release, files={"release.safetensors": "cd" * 32})},
        "records/release.json",
    ),
    "chosen beacon": (
        lambda c: {"release": replace(c.release, beacon="ab" * 32)},
        "records/release.json",
    ),
    "other owner of the release": (
        lambda c: {"release": replace(c.release, owner="ab" * 32)},
        "records/release.json",
    ),
    "release of another commitment": (
        lambda c: {"release": replace(c.release, commitment="ab" * 32)},
        "records/release.json",
    ),
    "other suspect": (
        lambda c: {"claim": replace(c.claim, suspect="ab" * 32)},
        "records/claim.json",
    ),
    "other nonce": (lambda c: {"claim": replace(c.claim, nonce="ab" * 32)}, "records/claim.json"),
    "earlier claim": (
        lambda c: {"claim": replace(c.claim, created="2020-01-01T00:00:00Z")},
        "records/claim.json",
    ),
    "claim by another": (
        lambda c: {"claim": replace(c.claim, claimant="ab" * 32)},
        "records/claim.json",
    ),
    "unrevealed shards": (lambda c: {"claim": replace(c.claim, shards=(0,))}, "records/claim.json"),
    "receipt of another": (
        lambda c: {
            "proof": replace(
                c.proof, receipts=c.proof.receipts | {"release": c.proof.receipts["claim"]}
            )
        },
        "records/release.json",
    ),
    "no receipt": (
        lambda c: {"proof": replace(c.proof, receipts={})},
        "ledger/proof.json",
    ),
    "no consistency": (lambda c: {"proof": replace(c.proof, consistency={})}, "ledger/proof.json"),
    "unknown receipt": (
        lambda c: {
            "proof": replace(c.proof, receipts=c.proof.receipts | {"x": c.proof.receipts["claim"]})
        },
        "ledger/proof.json",
    ),
    "bad key": (lambda c: {"proof": replace(c.proof, vkey="x+00000000+AA==")}, "ledger/vkey.txt"),
    "unsigned head": (
        lambda c: {
            "proof": replace(c.proof, checkpoint=c.proof.checkpoint.replace("\n5\n", "\n6\n"))
        },
        "ledger/checkpoint.txt",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_records_cannot_be_made_to_agree_again(case, name):
    """The forger reseals the manifest and makes the page from the changed records."""
    change, file = FORGERIES[name]
    changes = change(case)
    content = replace(case.dossier(), **changes)
    if file != "records/report.json":
        content = replace(content, report=None)
    refused(sealed(content), file)


def test_the_page_cannot_say_what_the_records_do_not(case, packed):
    html = packed["report.html"].replace(b"Acme Research", b"Evil Research")
    refused(resealed(packed, **{"report.html": html}), "report.html")
    main = replace(case.subjects[1], name="leak.safetensors")
    other = case.report(subjects=(main, *case.subjects[1:]), robustness=())
    refused(sealed(case.dossier(report=other)), "records/report.json")
    lying = replace(case.subjects[9].verdict, outcome=Outcome.SHOWN)
    second = case.report(subjects=(*case.subjects[:9], replace(case.subjects[9], verdict=lying)))
    refused(sealed(case.dossier(report=second)), "records/report.json")
    refused(
        {k: v for k, v in resealed(packed).items() if k != "x"} | _without(packed), "report.html"
    )


def _without(packed):
    plain = {k: v for k, v in packed.items() if k not in {MANIFEST, SIGNATURE, "report.html"}}
    return plain | {MANIFEST: Manifest.of(plain).canonical()}


def test_a_page_of_another_version_is_only_noted(case):
    older = case.report(version="0.0.1", robustness=())
    contents = sealed(case.dossier(report=older, trials=()))
    changed = resealed(contents, **{"report.html": b"<p>older looks</p>"})
    found = {item.name: item for item in check_files(changed)}
    assert found["report"].status == checks.NOTE
    assert "0.0.1" in found["report"].detail


def test_order_in_the_ledger_is_what_counts(tmp_path, case):
    with SqliteLedger.create(tmp_path / "l.sqlite", "example.com/acme") as ledger:
        release = replace(case.release, beacon=None)
        receipts = {
            "release": ledger.append(release.canonical()),
            "commitment": ledger.append(case.commitment.canonical()),
        }
        proof = ledger_proof(ledger, receipts)
    content = replace(case.dossier(), release=release, proof=proof, report=None)
    assert "before the commitment" in refused(sealed(content), "ledger/proof.json").what


def test_two_histories_are_not_one(tmp_path, case):
    """The same ledger key signs two histories; each receipt is good by itself."""
    from earmark.ledger.note import SignerKey

    signer = SignerKey.generate("example.com/acme")
    release = replace(case.release, beacon=None)
    made = {}
    for side in ("a", "b"):
        with SqliteLedger.create(tmp_path / side, "example.com/acme", signer=signer) as ledger:
            if side == "b":
                ledger.append(b'{"other":1}')
            receipts = {
                "commitment": ledger.append(case.commitment.canonical()),
                "release": ledger.append(release.canonical()),
            }
            ledger.append(b'{"x":1}')
            made[side] = ledger_proof(ledger, receipts)
    mixed = replace(
        made["b"],
        receipts={
            "commitment": made["a"].receipts["commitment"],
            "release": made["b"].receipts["release"],
        },
        consistency=dict(made["a"].consistency) | dict(made["b"].consistency),
    )
    content = replace(case.dossier(), release=release, proof=mixed, report=None)
    refused(sealed(content), "ledger/proof.json")


def test_counts_that_would_take_for_ever_are_refused(case):
    huge = replace(case.evidence, hits=1, trials=1 << 50)
    fine = replace(case.evidence, chance=Fraction((1 << 40) - 1, 1 << 41))
    for odd in (huge, fine):
        content = replace(case.dossier(), evidence=odd, report=None)
        refused(sealed(content), "records/evidence.json")


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for key, inner in enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def with_leaf(value, path, new):
    if not path:
        return new
    made = value.copy()
    made[path[0]] = with_leaf(value[path[0]], path[1:], new)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("extreme", [1e308, -1e308, (1 << 53) - 1, 0, "", "\ud7ff" * 3000, None])
def test_extreme_values_are_refused_or_drawn(packed, extreme):
    """Nothing but a DossierError ever comes out of a resealed dossier with odd values in it."""
    value = json.loads(packed["records/report.json"])
    everything = [path for path, _ in leaves(value)]
    for path in random.Random(str(extreme)).sample(everything, 40):
        data = codec.canonical(with_leaf(value, path, extreme))
        with suppress(DossierError):
            check_files(resealed(packed, **{"records/report.json": data}))


def test_records_in_a_wrong_form_are_refused(packed):
    loose = b" " + packed["records/claim.json"]
    refused(resealed(packed, **{"records/claim.json": loose}), "records/claim.json")
    for wrong in (b"{}", b"[1]", b"[{}]", b"x"):
        refused(resealed(packed, **{"records/trials.json": wrong}), "records/trials.json")
    refused(resealed(packed, **{"ledger/vkey.txt": b"x\n"}), "ledger/vkey.txt")


def test_nothing_is_written_that_does_not_hold(tmp_path, case):
    bad = replace(case.dossier(), claim=replace(case.claim, suspect="ab" * 32))
    with pytest.raises(DossierError):
        write_dossier(tmp_path / "d", bad)
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_is_left(tmp_path, packed, monkeypatch):
    real, calls = os.fsync, []

    def failing(handle):
        calls.append(handle)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OutputError, match="No space"):
        archive.write(tmp_path / "d", packed)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError):
        archive.write(tmp_path / "missing" / "d", packed)


def test_only_a_dossier_is_ever_replaced(tmp_path, packed):
    target = tmp_path / "d"
    archive.write(target, packed)
    with pytest.raises(UsageError, match="exists"):
        archive.write(target, packed)
    archive.write(target, {**packed, "attachments/new.txt": b"1"}, overwrite=True)
    assert (target / "attachments" / "new.txt").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["d"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="exists"):
        archive.write(tmp_path / "mine", packed, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_failed_replacement_keeps_the_old_one(tmp_path, packed, monkeypatch):
    target = tmp_path / "d"
    archive.write(target, packed)
    real = os.rename
    moves = []

    def failing(one, other):
        moves.append(one)
        if len(moves) == 2:
            raise OSError(5, "Input/output error")
        real(one, other)

    monkeypatch.setattr(type(target), "rename", failing)
    with pytest.raises(OutputError):
        archive.write(target, packed, overwrite=True)
    assert archive.read(target) == packed
    assert [item.name for item in tmp_path.iterdir()] == ["d"]


def test_pack_and_unpack_give_the_same_bytes(tmp_path, packed):
    archive.write(tmp_path / "d", packed)
    pack(tmp_path / "d", tmp_path / "one.zip")
    unpack(tmp_path / "one.zip", tmp_path / "e")
    pack(tmp_path / "e", tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert archive.read(tmp_path / "e") == packed
    assert len(check_dossier(tmp_path / "one.zip")) == len(check_dossier(tmp_path / "e"))
    with zipfile.ZipFile(tmp_path / "one.zip") as opened:
        assert opened.testzip() is None
    with pytest.raises(UsageError):
        pack(tmp_path / "d", tmp_path / "one.zip")


def test_a_changed_byte_of_the_packed_file_is_found(packed):
    data = archive.encode(packed)
    for place in positions(data, 120, 1):
        changed = bytearray(data)
        changed[place] ^= 0x04
        with pytest.raises(DossierError):
            archive.decode(bytes(changed))
    for odd in (data + b"x", b"x" + data, data[:-1], b"", b"PK"):
        with pytest.raises(DossierError):
            archive.decode(odd)


def zipped(tmp_path, names, method=zipfile.ZIP_STORED, data=b"x"):
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w", method) as made:
        for name in names:
            made.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "dossier/../../etc/passwd",
        "/etc/passwd",
        "dossier/..\\x",
        "dossier/a/b/c/d/e/f",
        "dossier/con.txt",
        "dossier/a\nb",
        "dossier/.hidden",
        "C:\\x",
        "dossier/",
        "dossier/ü",
    ],
)
def test_no_path_escapes(tmp_path, name):
    path = zipped(tmp_path, [name])
    with pytest.raises(DossierError):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_bombs_and_doubles_are_refused(tmp_path, monkeypatch):
    bomb = zipped(tmp_path, ["dossier/a"], zipfile.ZIP_DEFLATED, b"\0" * 1_000_000)
    with pytest.raises(DossierError, match="compressed"):
        unpack(bomb, tmp_path / "out")
    with pytest.raises(DossierError, match="twice"):
        unpack(zipped(tmp_path, ["dossier/a", "dossier/A"]), tmp_path / "out")
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    with pytest.raises(DossierError):
        unpack(zipped(tmp_path, [f"dossier/{i}" for i in range(4)]), tmp_path / "out")
    monkeypatch.setattr(archive, "MAX_BYTES", 100)
    with pytest.raises(FileError):
        unpack(zipped(tmp_path, ["dossier/a"], data=b"x" * 200), tmp_path / "out")


def test_folders_with_links_or_too_much_are_refused(tmp_path, packed, monkeypatch):
    archive.write(tmp_path / "d", packed)
    (tmp_path / "d" / "link").symlink_to("/etc/hostname")
    with pytest.raises(DossierError, match="link"):
        check_dossier(tmp_path / "d")
    (tmp_path / "d" / "link").unlink()
    (tmp_path / "d" / ".DS_Store").write_bytes(b"x")
    with pytest.raises(DossierError, match="DS_Store"):
        check_dossier(tmp_path / "d")
    (tmp_path / "d" / ".DS_Store").unlink()
    (tmp_path / "d" / "a" / "b" / "c" / "d" / "e").mkdir(parents=True)
    with pytest.raises(DossierError, match="deep"):
        check_dossier(tmp_path / "d")
    monkeypatch.setattr(archive, "MAX_BYTES", 10)
    with pytest.raises(DossierError, match="large"):
        archive.read(tmp_path / "d")


def test_what_is_no_dossier_is_said_so(tmp_path):
    with pytest.raises(FileError):
        check_dossier(tmp_path / "missing")
    with pytest.raises(FileError):
        pack(tmp_path / "missing", tmp_path / "x.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=r"empty' has no 'manifest.json'"):
        check_dossier(tmp_path / "empty")
    (tmp_path / "text").write_text("no dossier")
    with pytest.raises(FormatError, match="text' is no packed dossier"):
        check_dossier(tmp_path / "text")


def test_attachments_cannot_take_the_place_of_records(case):
    for evil in ("../records/claim.json", "x/../../y", ""):
        with pytest.raises(DossierError):
            archive.require_paths(
                list(sealed(case.dossier(attachments={evil: b"x"}, report=None))),
                where="The dossier",
            )


def test_every_public_name_is_there():
    assert all(hasattr(report, item) for item in report.__all__)
