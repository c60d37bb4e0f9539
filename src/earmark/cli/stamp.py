"""`earmark stamp`: commit, bind, put a mark into finished weights, self-check, register."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from earmark import files, policy, registry
from earmark.cli import options
from earmark.cli.output import Bars, emit_outcome, line
from earmark.cli.protect import commit, community_of, open_vault, ready, self_check, strength, which
from earmark.cli.verify import read_release
from earmark.codec import Json
from earmark.wording import counted

if TYPE_CHECKING:
    from earmark.schemes.deepwater import DeepWater


@click.command(
    "stamp", epilog="Example:  earmark stamp model.safetensors -o release --owner 'Acme Research'"
)
@click.argument("weights", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", "folder", type=click.Path(path_type=Path), required=True, help="A new folder."
)
@options.settings_option
@options.new_key_options
@options.vault_option
@options.passphrase_option
@options.quiet_option
@options.json_option
def command(
    *,
    weights: Path,
    folder: Path,
    settings: tuple[str, ...],
    community_path: Path | None,
    owner: str,
    vault_path: Path,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Put a mark into finished weights and register it: no data, no code, no training.

    WEIGHTS is a safetensors file, a folder of them or their index, of any size; tensors are
    read and written one by one. The mark is Deep Water, and --set gives its settings:
    margin=8 for a stronger mark than the unseen one, payload=c0ffee for an identifier that is
    read back. The files keep their names; other files (configuration, tokenizer) are yours to
    copy. Where `verify` would not show the mark, the exit code is that of `verify`.
    """
    from earmark.hosts.files import FilesHost
    from earmark.schemes.deepwater import DeepWater, check_files, stamp_files

    options.require_folder(folder)
    word = ready(vault_path, owner, passphrase_file)
    scheme = registry.scheme("deepwater", **options.parse_settings(settings))
    assert isinstance(scheme, DeepWater)
    source = FilesHost(weights)
    new = scheme.new_key(source)
    check_files(source, new)
    new = new.fixing(source.digest())
    community = community_of(community_path)
    bars = Bars(quiet=quiet or as_json)
    vault = open_vault(vault_path, owner, word, bars)
    key, registration = commit(vault, new, word, folder.name, community)
    bars.note(f"key {registration.id}: committed")
    stamp_files(scheme, weights, folder, key, events=bars)
    written = sorted(folder.glob("*.safetensors"))
    digests = {path.name: files.file_digest(path) for path in written}
    registration = vault.release(registration, digests)
    evidence = read_release(FilesHost(folder), key, vault, registration)
    verdict = policy.judge(evidence)
    suspect = written[0] if len(written) == 1 else folder
    lines = [
        line("scheme", f"{key.layout.scheme}  ({counted(len(key.layout.carrier), 'tensor')})"),
        line("key", f"{registration.id}  (sealed in your vault; back it up now)"),
        *self_check(evidence, verdict),
        line(
            "ledger",
            f"#{registration.receipt.index} commitment;  "
            f"#{registration.release_receipts[-1].index} release",
        ),
        *strength(evidence, verdict, _better(scheme)),
        line("keep", f"{weights}: verify wants it as --reference where neurons were reordered"),
        f"{folder} written.   Next: earmark verify {suspect}{which(vault, registration)}",
    ]
    named: Json = dict(digests)
    payload: dict[str, Json] = {
        "key": registration.id,
        "evidence": evidence.to_json(),
        "verdict": verdict.to_json(),
        "files": named,
        "release": str(folder),
    }
    return emit_outcome("stamp", lines, payload, verdict.outcome, as_json=as_json)


def _better(scheme: DeepWater) -> str:
    """Say how finished weights bear more: a stronger mark, more answers, or more weights."""
    fewer = max(16, scheme.weights_per_bit // 4)
    ways = ["--set margin=8"] if scheme.margin < 8 else []
    ways += [f"--set weights_per_bit={fewer}"] if fewer < scheme.weights_per_bit else []
    ways += ["--set carrier=... for further tensors"]
    return f"Stamp anew, into another folder, with  {', or '.join(ways)}."
