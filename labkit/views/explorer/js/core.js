/** What all modules share: elements, numbers and times as text, bytes of whatever carries them. */

export const EPSILON = 1e-6;
export const CORRECT_IOU = 0.5;
// Bidi controls, control characters and lone surrogates, one mark for each so that places in the text still hold.
const HOSTILE =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|[\ud800-\udfff]/gu;

/** An element with attributes; `on*` are listeners, children are nodes or text. */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
export const safeText = (text) => String(text).replace(HOSTILE, "\ufffd");
export const percent = (share) => `${(100 * share).toFixed(3)}%`;
export const number = (value, digits = 2) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits).replace("-", "\u2212");
export const signed = (value, digits = 2) => (value > 0 ? "+" : "") + number(value, digits);
export const many = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : one.endsWith("y") ? "" : "s"}`;

/** Seconds as a clock shows them: 8.0 s, 1:08.0. */
export function clock(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

export const letter = (place) => String.fromCharCode(65 + place);
export const later = (work) => setTimeout(work, 20);
export const spaced = (name) => safeText(name).replaceAll("_", " ");
export const span = ([start, end]) => `${start.toFixed(1)} to ${end.toFixed(1)} s`;

/** A span as short as it can be said. */
export const times = ([start, end]) => (end < 1000 ? `${start.toFixed(1)}–${end.toFixed(1)}` : `${whole(start)}–${whole(end)}`);
/** The spans of a step as Python packed it: of a set each of its own, else the one. */
export const parts = (at) => at[4] ?? [at.slice(0, 2)];
export const spans = (at) => (at[4] ? `${at[4].length} spans` : times(at));
const whole = (seconds) => `${Math.floor(Math.round(seconds) / 60)}:${String(Math.round(seconds) % 60).padStart(2, "0")}`;

/** Bytes of whatever carries them: base64 in a page, a DataView from a kernel. */
export function bytes(value) {
  if (typeof value === "string") return Uint8Array.from(atob(value), (char) => char.charCodeAt(0));
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  return new Uint8Array(value);
}

export async function inflate(packed) {
  const stream = new Blob([bytes(packed)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** A round step that gives about `wanted` ticks. */
export function tickStep(duration, wanted) {
  const rough = duration / wanted;
  return [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600].find((step) => step >= rough) ?? Math.ceil(rough);
}
