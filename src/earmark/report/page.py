"""The ownership report: records in, one self-contained HTML page out.

Always in the same order: the verdict; the one number and what it means; what was compared; how the
null is known; when; utility against evidence; each suspect; robustness known beforehand; limits;
digests. The page states what the records say and decides nothing.
"""

from __future__ import annotations

from pathlib import Path

from earmark import files
from earmark.errors import LedgerError
from earmark.ledger.checkpoint import SignedCheckpoint
from earmark.policy import by_count, exact, too_small, weighed
from earmark.records import Access, Evidence, Outcome, Verdict
from earmark.report import parts
from earmark.report.battery import attack_table, removal_sentences
from earmark.report.content import ReportContent, Subject
from earmark.report.markup import Markup, join, name, tag
from earmark.report.numbers import (
    THIN,
    bits,
    chance,
    fixed,
    log10_p,
    number,
    percent,
    probability,
    rate,
    rate_interval,
)
from earmark.report.plane import Dot, plane
from earmark.report.rows import summarize
from earmark.report.strip import needed_hits, strip
from earmark.report.timeline import moments, precedence, timeline
from earmark.wording import counted

_CODE_BYTES = 700
_READ = {
    Access.WEIGHTS: "its weights",
    Access.ACTIVATIONS: "its hidden activations",
    Access.SCORES: "its class scores",
    Access.LABELS: "its answers alone",
}
_KIND_WORDS = {
    "release": "our release",
    "stolen": "stolen copy",
    "suspect": "suspect",
    "innocent": "made without the key",
}


def render(content: ReportContent) -> str:
    """Write the report as one HTML page without scripts or anything remote.

    Args:
        content: What it shows.

    Returns:
        The page. The same content gives the same bytes.

    Example:
        >>> from earmark.policy import Policy, judge
        >>> from earmark.records import Evidence
        >>> evidence = Evidence.of("demo", hits=1000, trials=1024)
        >>> subject = Subject("leak", evidence, judge(evidence))
        >>> content = ReportContent("net", "Acme", "2027-07-04T08:00:00Z", Policy(), (subject,))
        >>> render(content)[:15]
        '<!doctype html>'
    """
    return parts.page(
        f"Ownership report: {content.model}",
        parts.sample_note() if content.sample else "",
        parts.header("earmark ownership report", content.model, content.created),
        _verdict(content),
        _the_number(content),
        _compared(content),
        _null(content),
        _when(content),
        _picture(content),
        _suspects(content),
        _robustness(content),
        _limits(content),
        _digests(content),
        tag(
            "p",
            f"Written by earmark {content.version} from the records named above.",
            class_="foot",
        ),
    )


def write_page(path: str | Path, html: str, *, overwrite: bool = False) -> None:
    """Write a page to a file, whole or not at all.

    Raises:
        UsageError: The file exists and may not be overwritten.
        OutputError: The file cannot be written.
    """
    files.write_bytes(path, html.encode(), overwrite=overwrite)


def _verdict(content: ReportContent) -> Markup:
    subject = content.subject
    verdict, evidence = subject.verdict, subject.evidence
    owner, suspect = name(content.owner), name(subject.name)
    policy_rate = percent(verdict.power_rate) if verdict.power_rate < 1 else "all"
    kept = (
        f"A model that gives {policy_rate} of the key's answers would have been shown with "
        "probability "
    )
    if verdict.outcome is Outcome.SHOWN:
        sentence = join("The mark of ", owner, " is shown in ", suspect, ".")
        more = join(
            f"{evidence.hits:,} of {evidence.trials:,} answers match the key that was committed",
            " beforehand" if content.commitment is not None else "",
            f".{_behind(verdict, evidence)} The policy asks for {number(verdict.threshold)} bits "
            f"of evidence; there are {bits(verdict.bits)}, which reaches the level "
            f"“{verdict.level}”.",
        )
    elif verdict.outcome is Outcome.NOT_SHOWN:
        sentence = join("The mark of ", owner, " is not shown in ", suspect, ".")
        more = join(
            f"{evidence.hits:,} of {evidence.trials:,} answers match, which is worth "
            f"{bits(verdict.bits)} bits of the {number(verdict.threshold)} asked for. The test "
            f"could have shown it: {kept[0].lower()}{kept[1:]}{probability(verdict.power)}"
            f"{_by_count(evidence)}."
        )
    else:
        sentence = join(
            "This test cannot tell whether ", suspect, " carries the mark of ", owner, "."
        )
        more = join(
            f"{evidence.trials:,} answers were counted, too few to decide. {kept}"
            f"{probability(verdict.power)} only{_by_count(evidence)}.{_behind(verdict, evidence)}"
            f"{_small(verdict, evidence)}"
        )
    sign = f"{parts.MARKS[verdict.outcome.value]} {verdict.outcome.value}"
    kind = "stamp shown" if verdict.outcome is Outcome.SHOWN else "stamp"
    return join(tag("p", sign, class_=kind), tag("h1", sentence), tag("p", more, class_="lead"))


def _behind(verdict: Verdict, evidence: Evidence) -> str:
    """Say what was weighed, where that and not the count of the answers is the evidence."""
    if not weighed(verdict, evidence):
        return ""
    if evidence.signs > evidence.trials:
        what = f"The {evidence.signs:,} keyed signs behind these answers"
    else:
        what = "The answers"
    plain = bits(by_count(evidence))
    return f" {what} were weighed by their sizes; counted alike, the answers give {plain} bits."


def _small(verdict: Verdict, evidence: Evidence) -> str:
    """Say that a mark has too few answers for what is asked for, or nothing."""
    if not too_small(verdict, evidence):
        return ""
    most = bits(by_count(evidence, evidence.trials))
    return (
        f" The mark is too small: were all of its answers right, they would give {most} bits "
        f"by count, of {number(verdict.threshold)} asked for"
        f"{'.' if evidence.score is None else '; only a weighted reading could give more.'}"
    )


def _by_count(evidence: Evidence) -> str:
    return "" if evidence.score is None else ", by the count of its answers alone"


def _the_number(content: ReportContent) -> Markup:
    verdict, evidence = content.subject.verdict, content.subject.evidence
    tosses = int(verdict.bits)
    if tosses >= 1:
        like = (
            f" It is no likelier than calling {tosses:,} "
            f"toss{'es' if tosses != 1 else ''} of a fair coin in a row."
        )
    else:
        like = " That is no evidence at all."
    meaning = (
        "The chance, at most, that a model made without the key would match this well, after "
        "charging for every key, suspect and reading that was tried." + like
    )
    shown = rate(evidence.hits, evidence.trials)
    pairs: list[tuple[object, object]] = [
        (
            f"{evidence.hits:,} of {evidence.trials:,}",
            f"answers match: {shown}, 95 % interval "
            f"{rate_interval(evidence.hits, evidence.trials)}. By chance it is "
            f"{percent(float(evidence.chance))}.",
        ),
        (
            f"{bits(verdict.bits)} bits",
            f"of evidence, net of everything tried; {bits(verdict.bits_gross)} gross, "
            f"{number(verdict.threshold)} asked for.",
        ),
        (
            f"power {probability(verdict.power)}",
            "the probability that this test shows a model that gives "
            + (f"{percent(verdict.power_rate)} of" if verdict.power_rate < 1 else "all")
            + f" the key's answers{_by_count(evidence)}.",
        ),
    ]
    return parts.section(
        "The one number",
        tag(
            "div",
            tag("b", chance(verdict.bits)),
            tag("span", f"log₁₀ p = {log10_p(verdict.log10_p)}", class_="unit"),
            class_="number",
        ),
        tag("p", meaning),
        parts.facts(pairs),
    )


def _compared(content: ReportContent) -> Markup:
    subject = content.subject
    evidence = subject.evidence
    tried = evidence.tried
    rows: list[tuple[str, object]] = [
        ("Suspect", join(name(subject.name), f" ({_KIND_WORDS[subject.kind]})")),
    ]
    if subject.done:
        rows.append(("What was done to it", name(subject.done)))
    rows += [
        ("Read from it", join(_READ[evidence.access], _queries(evidence.queries))),
        ("With the key of", name(content.owner)),
        ("Scheme", name(evidence.scheme)),
        (
            "Tried in all",
            f"{counted(tried.keys, 'key')} × {counted(tried.suspects, 'suspect')} × "
            f"{counted(tried.forms, 'reading')}, all charged",
        ),
        ("Suspect's digest", parts.digest(evidence.suspect)),
    ]
    if evidence.nonce is not None:
        rows.append(("Trials split by", parts.digest(evidence.nonce)))
    notes = parts.bullets([name(item, longest=400) for item in evidence.notes])
    return parts.section("What was compared", parts.listing(rows), notes if evidence.notes else "")


def _queries(count: int) -> str:
    return f", {count:,} inputs sent" if count else ""


def _null(content: ReportContent) -> Markup:
    subject = content.subject
    evidence = subject.evidence
    odds = evidence.chance
    law = (
        f"binomial: {evidence.trials:,} trials, each a hit with probability {odds.numerator}/"
        f"{odds.denominator}"
    )
    if exact(evidence.scheme):
        told = (
            "The right answers were drawn from the secret key, each independently of every other "
            f"and of the suspect. So the count for any model made without the key is exactly {law},"
            " whatever that model is. No other models had to be trained to know this, no threshold "
            "was tuned, and no answer that helped to fit a reader is counted."
        )
    else:
        told = (
            f"The count is judged as if it were {law}. That it is so for models made without the "
            "key is the claimant's word: this scheme drops answers after they are drawn, or is of "
            "a third party."
        )
    inner: list[object] = [tag("p", told), tag("p", _drawn(content))]
    if evidence.score is not None:
        inner.append(
            tag(
                "p",
                f"Beside the count, a weighted reading of {counted(evidence.signs, 'keyed sign')} "
                "was taken: the larger what stands behind a sign, the more it counts. Its chance "
                "is a proven upper bound. The better of the two counts, and the choice between "
                "them is charged.",
            )
        )
    if evidence.trials:
        pieces = len(subject.verdict.evidence)
        needed = None
        if evidence.score is None:
            needed = needed_hits(evidence, content.policy, pieces)
        caption = (
            "The grey bell is where models made without the key fall. "
            + ("The dashed line is the least count that the policy calls shown. " if needed else "")
            + "The dot is what was counted on the suspect."
        )
        inner.append(
            parts.figure(caption, strip(evidence, needed), strip(evidence, needed, narrow=True))
        )
    return parts.section("How chance is known", *inner)


def _drawn(content: ReportContent) -> str:
    """Say what shows that the key's answers were drawn and not chosen."""
    if content.release is None or content.release.beacon is None:
        return (
            "Nothing here shows that the answers were drawn and not chosen to suit a model: the "
            "key is bound to no value of a ledger."
        )
    return (
        "The answers depend on a value that a ledger gave after the key was committed. Whoever "
        "keeps a ledger alone could have tried many values; a community's log leaves no such "
        "choice, and a dossier says which of the two it was."
    )


def _when(content: ReportContent) -> Markup:
    found = moments(content)
    if not found:
        return Markup("")
    if content.proof is None:
        trust = "These times are stated by those who made the records; no ledger was given."
    else:
        trust = (
            "Filled marks stand in the ledger, which proves their order and that nothing was "
            "changed since; hollow marks and the diamond are statements. Times are stated by "
            "whoever made the record, unless independent witnesses have signed the ledger."
        )
    return parts.section(
        "Claim and suspect in time",
        tag("p", precedence(content)) if precedence(content) else "",
        parts.figure(trust, timeline(found), timeline(found, narrow=True)),
    )


def _picture(content: ReportContent) -> Markup:
    dots = []
    for place, subject in enumerate(content.subjects, 1):
        if subject.utility is not None:
            ends = parts.utility_range(subject.utility, subject.tested)
            dots.append(
                Dot(subject.utility, subject.verdict.bits, subject.name, place, subject.kind, ends)
            )
    if not dots:
        return Markup("")
    asked = content.policy.bits
    base = content.baseline
    caption = (
        "Each mark is one model: to the right it works better, higher up it carries more evidence. "
        "A thief wants to be bottom right. Bits are drawn on a scale that compresses upwards. "
        + _whiskers_said(content)
        + (f"An unmarked twin reaches {number(base)} %. " if base is not None else "")
    )
    kinds = [
        (kind, words)
        for kind, words in _KIND_WORDS.items()
        if any(dot.kind == kind for dot in dots)
    ]
    title = f"{content.utility_name} against net bits of evidence"

    def draw(*, narrow: bool) -> Markup:
        return plane(dots, asked=asked, x_name=content.utility_name, title=title, narrow=narrow)

    return parts.section(
        "Utility against evidence",
        parts.figure(caption, draw(narrow=False), draw(narrow=True), parts.key(kinds)),
    )


def _whiskers_said(content: ReportContent) -> str:
    counts = sorted({item.tested for item in content.subjects if item.tested is not None})
    if not counts:
        return ""
    said = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"Whiskers are 95 % intervals over n = {said} samples. "


def _suspects(content: ReportContent) -> Markup:
    columns = (
        "model",
        content.utility_name,
        "hits / trials",
        "bits",
        "chance",
        "power",
        "verdict",
    )
    rows = [
        _subject_row(columns, place, subject, main=place - 1 == content.main)
        for place, subject in enumerate(content.subjects, 1)
    ]
    note = (
        "Below each count and utility stands its 95 % interval (Clopper-Pearson). Bits are net of "
        "everything tried, gross below; chance is the net one, with log₁₀ p below."
    )
    return parts.section(
        "Every model under test",
        parts.table(columns, rows, left=(0, 6)),
        tag("p", note, class_="small"),
    )


def _subject_row(columns: tuple[str, ...], place: int, subject: Subject, *, main: bool) -> Markup:
    verdict, evidence = subject.verdict, subject.evidence
    head = join(
        f"{place} ",
        name(subject.name),
        tag("small", name(subject.done) if subject.done else _KIND_WORDS[subject.kind]),
    )
    cells = (
        utility_cell(subject.utility, subject.tested, columns[1]),
        parts.hits_cell(evidence.hits, evidence.trials, columns[2]),
        parts.td(bits(verdict.bits), columns[3], under=bits(verdict.bits_gross)),
        parts.td(chance(verdict.bits), columns[4], under=log10_p(verdict.log10_p)),
        parts.td(probability(verdict.power), columns[5]),
        parts.outcome_cell(verdict.outcome.value, columns[6]),
    )
    return parts.row(columns, head, cells, kind="main" if main else None)


def utility_cell(value: float | None, tested: int | None, label: str) -> Markup:
    """Write a utility in percent with its interval, or that it is unknown."""
    if value is None:
        return parts.td("not measured", label)
    ends = parts.utility_range(value, tested)
    return parts.td(f"{fixed(value, 1)}{THIN}%", label, under=parts.ends(*ends) if ends else "")


def _robustness(content: ReportContent) -> Markup:
    if not content.robustness:
        told = "Nothing was measured beforehand about which attacks this mark survives."
        return parts.section("Robustness known beforehand", tag("p", told))
    rows = summarize(content.robustness, content.policy)
    return parts.section(
        "Robustness known beforehand",
        tag("p", "Measured by the owner on the owner's own model; the ledger does not prove it."),
        tag(
            "div",
            *(tag("p", item) for item in removal_sentences(rows, content.policy)),
            class_="callout",
        ),
        attack_table(rows, content.utility_name),
    )


def _limits(content: ReportContent) -> Markup:
    verdict = content.subject.verdict
    extra = [name(item, longest=600) for item in content.notes]
    return parts.section("What this does not say", parts.bullets([*verdict.limits, *extra]))


def _digests(content: ReportContent) -> Markup:
    verdict = content.subject.verdict
    rows: list[tuple[str, object]] = []
    if content.commitment is not None:
        rows += [
            ("Commitment", parts.digest(content.commitment.commitment)),
            ("Owner's public key", parts.digest(content.commitment.owner)),
        ]
    if content.release is not None:
        rows += [
            (f"Released file {file}", parts.digest(value))
            for file, value in content.release.files.items()
        ]
    if content.claim is not None:
        rows.append(("Claim", parts.digest(content.claim.digest())))
    rows += [
        ("Evidence", parts.digest(content.subject.evidence.digest())),
        ("Verdict", parts.digest(verdict.digest())),
        ("Policy", parts.digest(verdict.policy)),
    ]
    code: Markup = Markup("")
    if content.proof is not None:
        rows += _ledger_rows(content)
        code = tag(
            "div",
            _head_code(content.proof.checkpoint),
            tag(
                "p",
                "The ledger's signed head. Keep it: a ledger that is changed later no longer "
                "continues it.",
            ),
            class_="qrbox",
        )
    body = tag("div", parts.listing(rows), code, class_="digests") if code else parts.listing(rows)
    return parts.section("Digests", body)


def _head_code(checkpoint: str) -> Markup:
    """Draw the signed head; where witnesses made it too long for a code, what they signed."""
    if len(checkpoint.encode()) <= _CODE_BYTES:
        return parts.qr(checkpoint)
    return parts.qr(checkpoint.partition("\n\n")[0][:_CODE_BYTES])


def _ledger_rows(content: ReportContent) -> list[tuple[str, object]]:
    assert content.proof is not None
    proof = content.proof
    rows: list[tuple[str, object]] = [("Ledger's public key", tag("code", proof.vkey))]
    try:
        head = SignedCheckpoint.parse(proof.checkpoint)
    except LedgerError:
        return [*rows, ("Ledger's head", "cannot be read")]
    return [
        ("Ledger", name(head.origin)),
        *rows,
        (
            "Ledger's head",
            join(counted(head.size, "entry", "entries"), ", root ", parts.digest(head.root.hex())),
        ),
    ]
