/** The chains that a figure's points hold, and where they stand among the chains of a page: labkit/views/figures/held_chains.py. */

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** A text as `text_digest` counts it: CRC-32 of its UTF-16 units. */
function digest(text) {
  let crc = -1;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    crc = TABLE[(crc ^ unit) & 255] ^ (crc >>> 8);
    crc = TABLE[(crc ^ (unit >> 8)) & 255] ^ (crc >>> 8);
  }
  return (crc ^ -1) >>> 0;
}

/**
 * What a clicked point holds, null where it doesn't say.
 * @param {object} table the figure's `layout.meta.chains`
 * @param {object} meta the trace's `meta`
 * @param {number | number[]} point its number, or row and column in a heat map
 */
export function heldBy(table, meta, point) {
  const at = Array.isArray(point) ? point[0] * meta?.columns + point[1] : point;
  const packed = meta?.held?.[at];
  if (!table || packed === undefined) return null;
  const column = (name, place) => (Array.isArray(table[name]) ? table[name][place] : table[name]);
  const [empty, packedBits] = packed.split(":");
  const bits = Uint8Array.from(atob(packedBits), (char) => char.charCodeAt(0));
  const first = 8 * Number(empty);
  const keys = [];
  for (let bit = 0; bit < 8 * bits.length; bit++) {
    if (!((bits[bit >> 3] >> (bit & 7)) & 1)) continue;
    const place = first + bit;
    const key = { ...table.labels[column("label", place)], qid: table.qids[column("qid", place)] };
    for (const name of ["step", "sample", "digest"]) key[name] = column(name, place);
    keys.push(key);
  }
  return { keys, count: meta.counts[at], name: meta.names?.[at] ?? "" };
}

/** Where the chains stand among those of a page, and those that aren't there. */
export function findHeld(chains, keys) {
  const byQid = new Map();
  for (let i = 0; i < chains.count; i++) {
    const { qid } = chains.moment(i);
    if (byQid.has(qid)) byQid.get(qid).push(i);
    else byQid.set(qid, [i]);
  }
  const { step, sample, text } = chains.columns;
  const same = (key, i) => {
    const stage = chains.name("stage", i);
    const run = chains.name("run", i);
    if (step[i] !== key.step || sample[i] !== key.sample) return false;
    if (key.run && run && run !== key.run) return false;
    if (stage && stage !== key.label && stage !== key.stage) return false;
    return key.digest === null || digest(text[i]) === key.digest;
  };
  const rows = new Set();
  const missing = [];
  for (const key of keys) {
    const found = (byQid.get(key.qid) ?? []).filter((i) => same(key, i));
    for (const i of found) rows.add(i);
    if (!found.length) missing.push(key);
  }
  return { rows: [...rows], missing };
}
