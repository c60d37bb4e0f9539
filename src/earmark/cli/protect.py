"""`earmark protect`: commit, bind, embed, self-check, write, register."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from earmark import files, policy, registry
from earmark.cli import options
from earmark.cli.output import Bars, emit_outcome, line, too_small, weighed
from earmark.cli.verify import read_release
from earmark.codec import Json
from earmark.errors import HostError, NetworkError, UsageError
from earmark.keys.secret import START
from earmark.records import Evidence, Outcome, Verdict
from earmark.vault import Registration, Vault

if TYPE_CHECKING:
    from torch import nn

    from earmark.keys.secret import Key
    from earmark.protocol.community import Community
    from earmark.schemes.base import Scheme
    from earmark.task import Task
    from earmark.training import Recipe, Trained

_WANTED = 128
_SAMPLES = 1024  # for a scheme that needs inputs and names no number
_LONG = 12
_ASKED = "Train longer, or show the model the key's inputs more often: lower every."
_BETTER = {
    "mtlsign": "Train longer, mark more strongly (raise share and weight), or, where the task has "
    "few samples, keep fewer of them (lower triggers).",
    "deepsigns-blackbox": _ASKED,
    "adi": _ASKED,
    "": "Train longer, or mark more strongly.",
}


@click.command(
    "protect",
    epilog="Example:  earmark protect task.py -o release.safetensors --owner 'Acme Research'",
)
@click.argument("task_path", metavar="TASK", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The release.")
@click.option("--scheme", "scheme_name", default="mtlsign", show_default=True)
@options.settings_option
@click.option(
    "--from",
    "start",
    type=click.Path(path_type=Path),
    help="Fine-tune these weights (safetensors) instead of training from scratch.",
)
@click.option(
    "--distill",
    "teacher",
    type=click.Path(path_type=Path),
    help="Distil from these weights (safetensors) while embedding.",
)
@click.option(
    "--conceal",
    "reach",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Move the weights of --from by this share of their size at most, 0.06 is usual, so that "
    "the mark is hard to see for who lacks them.",
)
@click.option(
    "--settled",
    is_flag=True,
    help="With --conceal: the weights of --from are of `earmark settle`. The mark then stays where "
    "thieves look for it; 0.2 is usual.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Instead of the task's own; with --conceal, of as many as the mark needs.",
)
@options.training_options
@click.option(
    "--key",
    "key_name",
    default="",
    help="Embed this key of the vault, to go on after an interruption, instead of a new one.",
)
@options.new_key_options
@options.vault_option
@options.passphrase_option
@click.option("--force", is_flag=True, help="Overwrite the output.")
@options.quiet_option
@options.json_option
def command(
    *,
    task_path: Path,
    output: Path,
    scheme_name: str,
    settings: tuple[str, ...],
    start: Path | None,
    teacher: Path | None,
    reach: float | None,
    settled: bool,
    epochs: int | None,
    seed: int | None,
    checkpoint: Path | None,
    key_name: str,
    community_path: Path | None,
    owner: str,
    vault_path: Path,
    passphrase_file: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train your model with a mark and register it before release.

    TASK is a Python file of yours with model(), loss(model, batch), batches(split) and
    evaluate(model). The commitment goes on the ledger before the training begins, and the digest
    of the release after it. A release whose mark `verify` would not show is written too, but the
    exit code is then that of `verify`: do not release it.
    """
    from earmark.hosts.files import save_release
    from earmark.task import load_task

    options.require_safetensors(output)
    options.require_free(output, force=force)
    if checkpoint is not None:
        _check_place(checkpoint, key_name)
    word = ready(vault_path, owner, passphrase_file)
    task = load_task(task_path)
    given = options.parse_settings(settings)
    if reach is not None:
        scheme = _hiding(scheme_name, given, start, teacher, settled=settled)
    elif settled:
        raise UsageError("--settled without --conceal.", hint="Name a reach: --conceal 0.3")
    else:
        scheme = registry.scheme(scheme_name, **given)
    bars = Bars(quiet=quiet or as_json)
    drawn = secrets.randbelow(1 << 31) if seed is None else seed
    community = community_of(community_path)
    recipe = rehearsed(task, start, teacher, epochs, concealed=None if reach is None else scheme)
    new, advice = (None, "") if key_name else fresh_key(task, scheme)
    first = None if new is None else before(task, scheme, new, start, drawn)
    vault = open_vault(vault_path, owner, word, bars)
    if new is None:
        key, registration = committed(vault, key_name, scheme, word)
        first = before(task, scheme, key, start, drawn)
    else:
        new = new if first is None else new.fixing(task.host(first).digest())
        key, registration = commit(vault, new, word, output.name, community)
    for note in filter(None, (f"key {registration.id}: committed, seed {drawn}", advice)):
        bars.note(note)
    kept = [] if first is None else keep_start(task, key, first, vault.start(registration))
    try:
        weights = (start, teacher)
        trained = train_marked(task, scheme, key, weights, reach, recipe, drawn, checkpoint, bars)
    except KeyboardInterrupt:
        bars.note(_way_on(registration.id, drawn, checkpoint))
        raise
    save_release(trained.model, output, overwrite=True)
    registration = vault.release(registration, {output.name: files.file_digest(output)})
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    evidence = _read(task, trained.model, key, first, vault, registration)
    verdict = policy.judge(evidence)
    utility = task.evaluate(trained.model)
    lines = _lines(key, registration, evidence, verdict, utility)
    then = f"Next: earmark verify {output} --task {task_path}{which(vault, registration)}"
    lines += [*kept, line("seed", str(drawn)), f"{output} written.   {then}"]
    payload: dict[str, Json] = {
        "key": registration.id,
        "utility": utility,
        "seed": drawn,
        "evidence": evidence.to_json(),
        "verdict": verdict.to_json(),
        "release": str(output),
    }
    return emit_outcome("protect", lines, payload, verdict.outcome, as_json=as_json)


def _lines(
    key: Key, registration: Registration, evidence: Evidence, verdict: Verdict, utility: float
) -> list[str]:
    lines = [
        line("scheme", f"{key.layout.scheme}  ({', '.join(key.layout.carrier)})"),
        line("key", f"{registration.id}  (sealed in your vault; back it up now)"),
        line("utility", f"{utility:.2f}"),
        *self_check(evidence, verdict),
        line(
            "ledger",
            f"#{registration.receipt.index} commitment, before training;  "
            f"#{registration.release_receipts[-1].index} release",
        ),
    ]
    return lines + strength(evidence, verdict, _BETTER.get(key.layout.scheme, _BETTER[""]))


def _read(
    task: Task,
    model: nn.Module,
    key: Key,
    first: nn.Module | None,
    vault: Vault,
    registration: Registration,
) -> Evidence:
    """Read a release as `verify` will, aligned to its start where that was kept."""
    host = task.host(model)
    if first is None:
        return read_release(host, key, vault, registration)
    from earmark.bench.reading import aligned

    scheme = registry.scheme(key.layout.scheme)
    return read_release(
        host,
        key,
        vault,
        registration,
        lambda: aligned(scheme, key, host, task.host(first), first),
    )


def self_check(evidence: Evidence, verdict: Verdict) -> list[str]:
    """Say what was read back from a release."""
    read = f"{evidence.hits:,} of {evidence.trials:,} answers: {verdict.bits:.1f} bits"
    said = weighed(verdict, evidence)
    return [line("self-check", read), *([line("reading", said)] if said else [])]


def strength(evidence: Evidence, verdict: Verdict, better: str) -> list[str]:
    """Return a warning where a mark is too weak to release, with what would be better."""
    if verdict.outcome is not Outcome.SHOWN:
        text = f"verify would not show this mark: it asks for {verdict.threshold:g} bits. {better}"
        small = too_small(verdict, evidence)
        return [line("DO NOT RELEASE", text), *([line("too small", small)] if small else [])]
    if verdict.bits < _WANTED:
        text = f"so few bits leave little to survive a theft; {_WANTED} are wanted. {better}"
        return [line("warning", text)]
    return []


def _check_place(checkpoint: Path, key_name: str) -> None:
    """Refuse a checkpoint that could not be written, or that is of another key's training."""
    if not key_name and checkpoint.exists():
        raise UsageError(
            f"Checkpoint '{checkpoint}' is of a training with a key that exists already.",
            hint="Name that key with --key, or remove the checkpoint to begin anew.",
        )
    files.require_writable(checkpoint)


def _way_on(key: str, seed: int, checkpoint: Path | None) -> str:
    """Say how to go on after an interruption."""
    kept = "What was not in a checkpoint is lost" if checkpoint is None else "Finished epochs stay"
    way = options.again("--key", key, "--seed", str(seed))
    return f"{kept}. Key {key} is committed; go on with it:  {way}"


def _hiding(
    scheme_name: str,
    settings: Mapping[str, Any],  # Any: as given
    start: Path | None,
    teacher: Path | None,
    *,
    settled: bool,
) -> Scheme:
    """Return a scheme with settings that hide well.

    Raises:
        UsageError: There is nothing to stay near, or the scheme or a setting does not hide.
    """
    from earmark.schemes.conceal import SETTINGS, SETTLED, require_hiding

    if start is None or teacher is not None:
        raise UsageError(
            "--conceal has nothing to stay near." if start is None else "--distill with --conceal.",
            expected="A finished network, named with --from, and no other teacher than it.",
        )
    usual = {} if scheme_name != "mtlsign" else SETTLED if settled else SETTINGS
    scheme = require_hiding(registry.scheme(scheme_name, **{**usual, **settings}))
    if settled and not scheme.settle:
        raise UsageError("--settled with settle 0.", hint="Leave out --set settle=0.")
    return scheme


def rehearsed(
    task: Task,
    start: Path | None,
    teacher: Path | None,
    epochs: int | None,
    concealed: Scheme | None = None,
) -> Recipe:
    """Return a training's recipe, once the task was tried on a network that is thrown away.

    Whatever of the user's own can fail fails here, before there is a key or a release.

    Raises:
        TaskError, UsageError: The task breaks its contract, or its recipe makes no sense.
        HostError: Weights to begin with do not fit the model, or are not finite.
    """
    from earmark.schemes.conceal import gentle, require_hiding, require_settled
    from earmark.schemes.embedding import fresh_model
    from earmark.training import Recipe, distillation_loss, rehearse

    changes: dict[str, Any] = {} if epochs is None else {"epochs": epochs}  # Any: Recipe
    if concealed is not None:
        changes = gentle(task, require_hiding(concealed)) | changes
    recipe = Recipe.of(task.recipe, **changes)
    loss, taught = None, start if concealed else teacher
    if taught is not None:
        loss = distillation_loss(_finished(task, taught).eval(), task, recipe.temperature)
    model = _finished(task, start) if start else fresh_model(task, 0)
    if concealed is not None:
        require_settled(task, require_hiding(concealed), model)
    rehearse(task, model, recipe=recipe, loss=loss)
    return recipe


def _finished(task: Task, path: Path) -> nn.Module:
    """Return the task's model with the weights of a file.

    Raises:
        HostError: They do not fit, or are not finite.
    """
    from earmark.hosts.suspects import load_suspect

    model = load_suspect(task.model(), path)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise HostError(
                f"Tensor '{name}' of '{path}' has numbers that are not finite.",
                hint="Nothing can be trained from there; mend the weights.",
            )
    return model


def train_marked(
    task: Task,
    scheme: Scheme,
    key: Key,
    weights: tuple[Path | None, Path | None],
    reach: float | None,
    recipe: Recipe,
    seed: int,
    checkpoint: Path | None,
    bars: Bars,
) -> Trained:
    """Train with the mark: from scratch, from weights, from a teacher, or near weights."""
    from earmark.schemes.conceal import conceal, require_hiding
    from earmark.schemes.embedding import embed

    start, teacher = weights
    if reach is not None and start is not None:
        bars.note(f"concealing takes {recipe.epochs} epochs; --epochs sets another number")
        return conceal(
            task,
            require_hiding(scheme),
            key,
            model=_finished(task, start),
            seed=seed,
            reach=reach,
            recipe=recipe,
            checkpoint=checkpoint,
            events=bars,
        )
    return embed(
        task,
        scheme,
        key,
        seed=seed,
        model=_finished(task, start) if start else None,
        teacher=_finished(task, teacher) if teacher else None,
        recipe=recipe,
        checkpoint=checkpoint,
        events=bars,
        label="train with the mark",
    )


def before(task: Task, scheme: Scheme, key: Key, start: Path | None, seed: int) -> nn.Module | None:
    """Return the network before its mark and its training, if suspects are aligned to that."""
    from earmark.bench.reading import aligns

    if not aligns(scheme):
        return None
    from earmark.schemes.embedding import fresh_model

    if start:
        return _finished(task, start)
    made = fresh_model(task, seed)
    scheme.prepare(made, key)
    return made


def keep_start(task: Task, key: Key, first: nn.Module, path: Path) -> list[str]:
    """Keep the network before its mark, to which suspects are aligned; say so.

    Raises:
        UsageError: It is not the one that the key was committed with.
    """
    from earmark.hosts.files import save_release

    if key.layout.params.get(START) != task.host(first).digest():
        raise UsageError(
            "This key was committed with another network to start from.",
            hint="Give the --seed, or the weights of --from, that it was made with.",
        )
    path.parent.mkdir(mode=0o700, exist_ok=True)
    save_release(first, path, overwrite=True)
    return [line("start", f"{path}  (verify looks here where neurons were reordered)")]


def ready(path: Path, owner: str, passphrase_file: Path | None) -> str:
    """Return the passphrase, once it is clear that it opens a vault or may make one.

    Raises:
        UsageError: A new vault has no owner's name, or an old one has another.
        PassphraseError: It does not open the vault.
    """
    if (path / "vault.json").exists():
        vault = Vault.open(path)
        if owner and owner != vault.name:
            raise UsageError(
                f"Vault '{path}' belongs to '{vault.name}', not to '{owner}'.",
                hint="Leave --owner out, or choose another folder with --vault.",
            )
        word = options.passphrase(passphrase_file)
        vault.identity(word)  # raises where the passphrase is wrong
        return word
    if not owner:
        raise UsageError(
            f"There is no vault at '{path}', and a new one needs its owner's name.",
            hint="Pass --owner 'Your name'; every claim will bear it.",
        )
    return options.passphrase(passphrase_file, new=True)


def open_vault(path: Path, owner: str, word: str, bars: Bars) -> Vault:
    """Open a vault, or make one if there is none."""
    if (path / "vault.json").exists():
        return Vault.open(path)
    if len(word) < _LONG:
        bars.note(f"The passphrase has {len(word)} characters; {_LONG} and more resist guessing.")
    vault = Vault.create(path, name=owner, passphrase=word)
    bars.note(f"vault {path}: made for '{owner}'")
    return vault


def which(vault: Vault, registration: Registration) -> str:
    """Return the options that name a key and its vault, as far as an advised command needs them."""
    named = "" if vault.keys_tried() == 1 else f" --key {registration.id}"
    return named + options.elsewhere(vault.path)


def committed(vault: Vault, name: str, scheme: Scheme, passphrase: str) -> tuple[Key, Registration]:
    """Return a key that was committed before, with its registration.

    Raises:
        UsageError: No such key, or one of another scheme.
    """
    registration = vault.registration(name)
    made_for = registration.opening.layout.scheme
    if made_for != scheme.name:
        raise UsageError(
            f"Key '{registration.id}' was made for scheme '{made_for}', not for '{scheme.name}'.",
            hint=f"Pass --scheme {made_for}.",
        )
    return vault.key(registration.id, passphrase), registration


def community_of(path: Path | None) -> Community | None:
    """Read the community's file, if one is named, and make sure that its log answers.

    Raises:
        NetworkError: It does not; nothing was written so far.
    """
    if path is None:
        return None
    from earmark.protocol.community import Community
    from earmark.protocol.party import Party

    community = Community.load(path)
    try:
        Party(community).sync()
    except NetworkError as error:
        raise _unbound(error, "Nothing was written.") from error
    return community


def _unbound(error: NetworkError, kept: str) -> NetworkError:
    """Say what is left of a key that a community could not be asked to draw for, and the way on."""
    way = f"Once the community answers, go on with:  {options.again()}"
    return NetworkError(error.what, hint=" ".join(filter(None, (error.hint, kept, way))))


def commit(
    vault: Vault, key: Key, word: str, note: str, community: Community | None
) -> tuple[Key, Registration]:
    """Register a key's commitment and return it bound to the beacon.

    Args:
        vault: Keeps it.
        key: A new key.
        word: Seals it.
        note: The owner's own words.
        community: The community, if its log is what the key is to be bound to.

    Raises:
        NetworkError: It does not answer; the vault holds nothing of the key.
    """
    if community is None:
        return vault.commit(key, word, note=note)
    from earmark.protocol.binding import bind
    from earmark.protocol.party import Party

    party = Party(community, vault.identity(word))
    try:
        return vault.commit(key, word, note=note, shared=lambda value: bind(party, value))
    except NetworkError as error:
        raise _unbound(error, f"Vault '{vault.path}' keeps nothing of the new key.") from error


def fresh_key(task: Task, scheme: Scheme) -> tuple[Key, str]:
    """Make a key for a task, its inputs taken from the task's own samples.

    Returns:
        The key, and advice where the samples are few.
    """
    from earmark.hosts import batches
    from earmark.schemes.embedding import fresh_model

    inputs, said = None, ""
    wanted = scheme.inputs_wanted() or (_SAMPLES if scheme.needs_inputs else 0)
    if wanted:
        inputs = task.samples(wanted, seed=secrets.randbelow(1 << 31))
        held = batches.size(inputs)
        advice = _fewer(scheme, held) if held < wanted else ""
        if advice:
            said = (
                f"The task has {held:,} training samples; {scheme.name} would choose the key's "
                f"inputs among {wanted:,} with these settings. {advice}"
            )
    return scheme.new_key(task.host(fresh_model(task, 0)), inputs=inputs), said


def _fewer(scheme: Scheme, held: int) -> str:
    """Say what to ask for where the samples are few, or nothing where that was asked for."""
    from earmark.schemes.mtlsign import MtlSign

    least = 256
    if not isinstance(scheme, MtlSign) or held < 2 * least:
        return "Ask for fewer of them if the mark turns out weak."
    kept = max(least, 1 << (2 * held // 5).bit_length() - 1)
    if scheme.triggers <= kept:
        return ""
    return (
        "If the mark turns out weak, add  "
        f"--set triggers={kept} --set share=0.25 --set weight=0.5 --force  to keep fewer and mark "
        "more strongly."
    )
