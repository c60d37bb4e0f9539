import { ballotOf, checkLog, checkProof, hex, sha256, parseNote } from "/check.js";

const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
function short(digest) {
  const button = make("button", { type: "button", className: "digest" }, `${digest.slice(0, 12)}…`);
  const say = (open) => {
    button.textContent = open ? digest : `${digest.slice(0, 12)}…`;
    button.setAttribute("aria-expanded", String(open));
    button.setAttribute("aria-label", open ? digest : `digest ${digest.slice(0, 12)}, show all of it`);
  };
  say(false);
  button.addEventListener("click", () => say(button.getAttribute("aria-expanded") === "false"));
  return button;
}
const when = (seconds) => new Date(seconds * 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC";
const clock = (seconds) => make("time", { dateTime: new Date(seconds * 1000).toISOString() }, when(seconds));
const outcomes = { shown: "mark shown", "not shown": "mark not shown", inconclusive: "inconclusive" };
const reasons = {
  open: "Voting goes on.", quorum: "A quorum of the panel agrees.",
  "no-quorum": "Too few of the panel agree; no verdict.",
  "guard-band": "The counts lie too near to the threshold to tell.",
  "no-draw": "Too few operators took part in the draw; no verdict.",
  "unverified-release": "The mark is not in what the claimant had released, so the key proves nothing.",
};
const votes = {
  counted: "agrees with the quorum", abstained: "could not tell", dissent: "found the opposite",
  absent: "no vote", unrevealed: "vote never shown", mismatch: "showed another ballot than sealed",
  equivocation: "sealed two ballots", late: "too late", "early-reveal": "showed the ballot too early",
};
const steps = {
  commit: "committed to a key", publish: "published the release", claim: "claimed the suspect",
  challenge: "challenged the claim", "vote-commit": "sealed a ballot", "vote-reveal": "showed the ballot",
  resolve: "signed the result", draw: "showed its value for the draw",
};
let names = new Map();
let keysOf = new Map();
const who = (key) => names.get(key) ?? `key ${key.slice(0, 8)}`;

function table(head, rows) {
  const body = rows.map((row) => make("tr", {}, ...row.map((cell, i) => {
    const td = make("td", {}, cell);
    td.dataset.name = head[i];
    return td;
  })));
  return make("div", { className: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...body)));
}

function facts(pairs) {
  return make("dl", {}, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const side = (code) => (code === "counted" ? "agrees" : code === "dissent" || code === "equivocation" || code === "mismatch" ? "differs" : "");

function disputeNote(result, resolution) {
  const found = resolution.disputes.find((item) => item.claims.includes(result.claim));
  if (!found) return null;
  const text = found.holder === result.claim ? "Another owner's mark is in this suspect too; this claim prevails."
    : found.holder ? "Another owner's mark is in this suspect too, and that claim prevails."
    : "Another owner's mark is in this suspect too, and the records do not tell whose it is.";
  return make("p", {}, make("b", {}, "Disputed. "), text);
}

const svg = (tag, values) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
  return node;
};

// Hits of all trials as a bar, with a line where chance alone would end it.
function bar({ hits, trials, chance }) {
  const [up, down] = chance.split("/").map(Number);
  const made = svg("svg", { viewBox: "0 0 100 7", preserveAspectRatio: "none", class: "bar", "aria-hidden": "true" });
  made.append(svg("rect", { width: 100, height: 7, class: "all" }), svg("rect", { width: (100 * hits) / trials, height: 7, class: "hits" }),
    svg("rect", { x: (100 * up) / down - 0.5, width: 1, height: 7, class: "chance" }));
  return made;
}

async function voteItem(voter, result, entries) {
  const item = make("li", { className: side(voter.code) }, make("b", {}, voter.operator), votes[voter.code] ?? voter.code);
  const found = await ballotOf(entries, result.claim, result.suspect, keysOf.get(voter.operator) ?? new Set());
  if (found?.trials) item.append(bar(found), make("span", { className: "count" }, `${found.hits} of ${found.trials}`));
  return item;
}

async function claimCard(result, entries, resolution) {
  const own = entries.find((entry) => entry.id === result.claim);
  const commitment = result.commitment;
  const story = entries.filter((entry) => !entry.refused && (
    entry.id === result.claim || entry.message.claim === result.claim || entry.message.entry === result.claim ||
    (entry.index < result.index && entry.message.commitment === commitment)));
  const [suspect, release] = result.tallies;
  const say = (tally) => `${tally.hits} of ${tally.trials} answers; ${tally.shown} found the mark, ${tally.not_shown} did not, ${tally.abstained} could not tell`;
  const state = result.outcome.replace(" ", "-");
  return make("article", {},
    make("header", {},
      make("span", { className: `stamp ${state}` }, result.closed ? outcomes[result.outcome] : "open"),
      make("h3", {}, `Claim ${result.claim.slice(0, 12)}`)),
    make("p", {}, reasons[result.code] ?? result.code),
    disputeNote(result, resolution),
    facts([
      ["owner", who(result.owner)], ["suspect", short(result.suspect)], ["commitment", short(commitment)],
      ["on the suspect", say(suspect)], ["on the release", release ? say(release) : "the same file"],
      ["charged", `${plural(result.keys, "key")}, ${plural(result.suspects, "suspect")}`],
    ]),
    make("ul", { className: "votes", ariaLabel: "Votes" }, ...await Promise.all(result.voters.map((voter) => voteItem(voter, result, entries)))),
    make("p", { className: "quiet" }, "Counts are read from signed ballots that fit their seals; the line marks what chance alone would give."),
    make("details", { open: story.length <= 8 },
      make("summary", {}, `Timeline, ${story.length} records`),
      make("ol", { className: "timeline" }, ...story.map((entry) =>
        make("li", {}, clock(entry.time), `${who(entry.message.sender)} ${steps[entry.kind] ?? entry.kind} (#${entry.index})`)))),
    make("div", { className: "row" }, own ? proofButton(own, entries) : null));
}

function proofButton(entry, entries) {
  const button = make("button", { type: "button" }, "Check and save proof");
  button.setAttribute("aria-label", `Check and save the proof of entry ${entry.index}`);
  const said = make("span", { className: "quiet", role: "status" });
  button.addEventListener("click", async () => {
    said.textContent = " checking …";
    try {
      const { checkpoint } = entries.at(-1);
      const size = parseNote(checkpoint).size;
      const answer = await (await fetch(`/api/proof?index=${entry.index}&size=${size}`)).json();
      if (!(await checkProof(entry, answer.proof, checkpoint))) throw new Error("the proof does not hold");
      said.textContent = ` holds: entry ${entry.index} of ${size}, ${answer.proof.length} hashes`;
      said.className = "quiet good";
      const text = JSON.stringify({ record: entry.text, index: entry.index, proof: answer.proof, checkpoint }, null, 1);
      const link = make("a", { href: URL.createObjectURL(new Blob([text])), download: `entry-${entry.index}.json` });
      link.click();
    } catch (error) {
      said.textContent = ` does not hold: ${error.message}`;
      said.className = "quiet bad";
    }
  });
  return make("span", {}, button, said);
}

async function show(community, resolution, checked) {
  const { entries } = checked;
  $("claims").replaceChildren(...(resolution.claims.length
    ? await Promise.all([...resolution.claims].reverse().map((result) => claimCard(result, entries, resolution)))
    : [make("p", { className: "quiet" }, "Nobody has claimed a suspect yet.")]));
  $("disputes").hidden = !resolution.disputes.length;
  $("dispute-list").replaceChildren(...resolution.disputes.map((item) => {
    const holder = resolution.claims.find((one) => one.claim === item.holder);
    return make("article", {}, make("h3", {}, `Suspect ${item.suspect.slice(0, 12)}`),
      make("p", {}, holder
        ? `${item.claims.length} owners have shown a mark on it. ${who(holder.owner)} prevails by ${item.code}.`
        : `${item.claims.length} owners have shown a mark on it, and the records do not tell whose it is.`));
  }));
  const published = entries.filter((entry) => entry.kind === "publish");
  const rows = entries.filter((entry) => entry.kind === "commit").map((entry) => {
    const release = published.find((item) => item.message.commitment === entry.message.commitment && item.message.sender === entry.message.sender);
    return [clock(entry.time), who(entry.message.sender), short(entry.message.commitment),
      release ? short(release.message.model) : "not published", proofButton(release ?? entry, entries)];
  });
  $("registrations").replaceChildren(rows.length ? table(["not later than", "by", "commitment", "release", "proof"], rows)
    : make("p", { className: "quiet" }, "Nothing is registered yet."));
  const refused = new Map(resolution.refused.map((item) => [item.index, item]));
  $("log").replaceChildren(make("details", { open: entries.length <= 12 },
    make("summary", {}, `${entries.length} entries`),
    table(["entry", "not later than", "record", "by", "proof"], entries.map((entry) => [
      `#${entry.index}`, clock(entry.time),
      refused.has(entry.index) ? make("span", { className: "bad", title: refused.get(entry.index).detail }, `refused: ${refused.get(entry.index).code}`) : entry.kind ?? "unreadable",
      entry.message ? who(entry.message.sender) : "", proofButton(entry, entries)]))));
}

async function main() {
  const raw = new Uint8Array(await (await fetch("/api/community")).arrayBuffer());
  const community = JSON.parse(new TextDecoder().decode(raw));
  const digest = hex(await sha256(raw));
  const status = await (await fetch("/api/status")).json();
  names = new Map(community.rules.members.map((member) => [member.key, member.operator]));
  keysOf = new Map();
  for (const { key, operator } of community.rules.members) keysOf.set(operator, (keysOf.get(operator) ?? new Set()).add(key));
  $("domain").textContent = community.rules.domain;
  document.title = `${community.rules.domain} · ledger of models`;
  $("pin").addEventListener("submit", (event) => {
    event.preventDefault();
    const fits = $("digest").value.trim().toLowerCase() === digest;
    $("pinned").textContent = fits ? "These are the keys and rules that you know." : `Another community: this one is ${digest}.`;
    $("pinned").className = fits ? "quiet good" : "quiet bad";
  });
  const rows = [];
  for (;;) {
    const page = (await (await fetch(`/api/log?since=${rows.length}`)).json()).rows;
    rows.push(...page);
    if (!page.length) break;
  }
  const resolution = await (await fetch("/api/resolution")).json();
  const verdict = $("checked");
  try {
    const checked = await checkLog(rows, community);
    const pending = checked.pending ? ` ${checked.pending} newer ones wait for witnesses.` : "";
    const forged = checked.entries.filter((entry) => entry.refused).length;
    verdict.textContent = `${checked.entries.length} entries hold: every root, signature and at least ${checked.threshold} of ${checked.witnesses} witnesses.${forged ? ` ${forged} records are not validly signed.` : ""}${pending}`;
    verdict.classList.add("good");
    $("about").textContent = `node of ${status.operator} · ${checked.entries.length} entries`;
    await show(community, resolution, checked);
  } catch (error) {
    verdict.textContent = `Do not rely on this log: ${error.message}.`;
    verdict.classList.add("bad");
    $("about").textContent = `node of ${status.operator}`;
  }
  document.documentElement.dataset.ready = "yes";
}

main().catch((error) => {
  $("checked").textContent = `This page could not be read: ${error.message}.`;
  $("checked").classList.add("bad");
});
