// What the browser checks by itself. No code of this file trusts the node that serves it; keep a
// copy of your own if you do not want to trust it for the code either.

const encoder = new TextEncoder();

export const hex = (bytes) => [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
export const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
export const base64 = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

const join = (...parts) => {
  const made = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { made.set(part, at); at += part.length; }
  return made;
};
const same = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);

export const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
export const leafHash = (record) => sha256(join(Uint8Array.of(0), record));
const nodeHash = (left, right) => sha256(join(Uint8Array.of(1), left, right));

export async function verifyEd25519(publicKey, message, signature) {
  const key = await crypto.subtle.importKey("raw", publicKey, { name: "Ed25519" }, false, ["verify"]);
  return crypto.subtle.verify({ name: "Ed25519" }, key, signature, message);
}

// Root of a tree from the complete subtrees that its leaves make (RFC 6962).
export class Tree {
  constructor() { this.peaks = []; this.size = 0; }
  async add(leaf) {
    let node = leaf;
    for (let size = this.size; size & 1; size >>= 1) node = await nodeHash(this.peaks.pop(), node);
    this.peaks.push(node);
    this.size += 1;
  }
  async root() {
    if (!this.peaks.length) return sha256(new Uint8Array());
    let node = this.peaks.at(-1);
    for (let i = this.peaks.length - 2; i >= 0; i -= 1) node = await nodeHash(this.peaks[i], node);
    return node;
  }
}

// Root that an inclusion proof leads to (RFC 9162, section 2.1.3.2).
export async function rootOfProof(leaf, index, size, proof) {
  let [node, last, hash] = [index, size - 1, leaf];
  if (index < 0 || index >= size) throw new Error("no such entry");
  for (const item of proof) {
    if (last === 0) throw new Error("the proof is too long");
    if (node & 1 || node === last) {
      hash = await nodeHash(item, hash);
      while (!(node & 1) && node) { node >>= 1; last >>= 1; }
    } else hash = await nodeHash(hash, item);
    node >>= 1; last >>= 1;
  }
  if (last) throw new Error("the proof is too short");
  return hash;
}

export function parseKey(text) {
  const [name, id, ...rest] = text.split("+");
  const material = base64(rest.join("+"));
  return { name, id, kind: material[0], public: material.slice(1) };
}

export function parseNote(text) {
  const cut = text.lastIndexOf("\n\n");
  const body = text.slice(0, cut + 1);
  const signatures = text.slice(cut + 2).trimEnd().split("\n").map((line) => {
    const [dash, name, data] = line.split(" ");
    if (dash !== "—") throw new Error("a signature line is malformed");
    const blob = base64(data);
    return { name, id: hex(blob.slice(0, 4)), blob: blob.slice(4) };
  });
  const [origin, size, root] = body.split("\n");
  return { body, origin, size: Number(size), root: base64(root), signatures };
}

// Verify the log's signature and count the witnesses; return the median of their times.
export async function verifyCheckpoint(note, logKey, witnesses, threshold) {
  const own = note.signatures.find((item) => item.name === logKey.name && item.id === logKey.id);
  if (!own || note.origin !== logKey.name) throw new Error("the log has not signed a checkpoint");
  if (!(await verifyEd25519(logKey.public, encoder.encode(note.body), own.blob))) throw new Error("a signature of the log does not verify");
  const times = [];
  for (const key of witnesses) {
    const item = note.signatures.find((one) => one.name === key.name && one.id === key.id);
    if (!item || item.blob.length !== 72) continue;
    const time = Number(new DataView(item.blob.buffer, item.blob.byteOffset, 8).getBigUint64(0));
    const text = encoder.encode(`cosignature/v1\ntime ${time}\n${note.body}`);
    if (await verifyEd25519(key.public, text, item.blob.slice(8))) times.push(time);
  }
  if (times.length < threshold) throw new Error(`only ${times.length} of ${witnesses.length} witnesses cosigned ${note.size} entries`);
  times.sort((a, b) => a - b);
  return times[times.length >> 1];
}

// Verify a DSSE envelope and return the message inside.
export async function openEnvelope(text) {
  const body = JSON.parse(text);
  const payload = base64(body.payload);
  const [{ keyid, sig }] = body.signatures;
  const head = encoder.encode(`DSSEv1 ${body.payloadType.length} ${body.payloadType} ${payload.length} `);
  if (!(await verifyEd25519(unhex(keyid), join(head, payload), base64(sig)))) throw new Error("a record's signature does not verify");
  const statement = JSON.parse(new TextDecoder().decode(payload));
  const message = statement.predicate;
  if (message.sender !== keyid) throw new Error("a record names another sender");
  return { kind: statement.predicateType.split(":")[2], message, id: hex(await sha256(encoder.encode(text))) };
}

// The one form in which records are hashed (RFC 8785); they hold no numbers but whole ones.
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}

export const sealOf = async (ballot) => hex(await sha256(encoder.encode(`earmark/ballot/1\n${canonical(ballot)}`)));

// What a voter sealed and showed on a claim: its counts on the suspect, if ballot and seal fit.
export async function ballotOf(entries, claim, suspect, keys) {
  const mine = entries.filter((entry) => entry.message?.claim === claim && keys.has(entry.message.sender));
  const sealed = new Set(mine.filter((entry) => entry.kind === "vote-commit").map((entry) => entry.message.ballot));
  for (const { message } of mine.filter((entry) => entry.kind === "vote-reveal")) {
    if (message.ballot.voter !== message.sender || message.ballot.claim !== claim) continue;
    if (!sealed.has(await sealOf(message.ballot))) continue;
    return message.ballot.findings.find((item) => item.model === suspect) ?? null;
  }
  return undefined;
}

// Derive the whole log again. Returns the entries; throws at the first thing that does not hold.
export async function checkLog(rows, community) {
  const log = parseKey(community.log);
  const witnesses = community.nodes.map((node) => parseKey(node.witness));
  const threshold = Math.max(1, witnesses.length - Math.max(0, Math.floor((witnesses.length - 1) / 3)));
  const tree = new Tree();
  const entries = [];
  let [waiting, latest] = [[], 0];
  for (const [index, row] of rows.entries()) {
    const bytes = encoder.encode(row.record);
    const leaf = await leafHash(bytes);
    await tree.add(leaf);
    const entry = { index, text: row.record, leaf };
    try { Object.assign(entry, await openEnvelope(row.record)); } catch (error) { entry.refused = error.message; }
    waiting.push(entry);
    if (!row.checkpoint) continue;
    const note = parseNote(row.checkpoint);
    if (note.size !== tree.size || !same(note.root, await tree.root())) throw new Error(`the log signed another history up to entry ${index}`);
    latest = Math.max(latest, await verifyCheckpoint(note, log, witnesses, threshold));
    for (const item of waiting) entries.push({ ...item, time: latest, checkpoint: row.checkpoint });
    waiting = [];
  }
  return { entries, threshold, witnesses: witnesses.length, pending: waiting.length };
}

// Check one entry by an inclusion proof alone, against a checkpoint that was verified before.
export async function checkProof(entry, proof, checkpoint) {
  const note = parseNote(checkpoint);
  return same(await rootOfProof(entry.leaf, entry.index, note.size, proof.map(unhex)), note.root);
}
