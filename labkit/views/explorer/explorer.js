/**
 * The chain explorer and the video scrubber: one module without dependencies, for a notebook and for a plain page.
 *
 * `render` is anywidget's entry; `mountFromState` and `mountAll` draw a saved state where there is no kernel; `mount`
 * and `mountScrubber` are what both use. Nothing here reads a model's text for numbers: Python has read and measured
 * every chain. Texts of models, queries and names only ever become text nodes.
 */

const SPEEDS = [0.5, 1, 2, 4];
const ROW = 30;
const SPARE_ROWS = 5;
const MOST_ROWS = 40;
const MOST_STEPS = 12;
const RIGHT = 0.5;
const KEPT_SHEETS = 8;
const PATIENCE = 3000;
const AHEAD = 200;
const EPSILON = 1e-6;
const SCRUB_HINT = [["space", "play"], ["←", ""], ["→", "frames"]];
const HINT = [...SCRUB_HINT, ["[", ""], ["]", "anchors"], ["?", "keys"]];
// Bidi controls, control characters and lone surrogates, one mark for each so that places in the text still hold.
const HOSTILE =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|[\ud800-\udfff]/gu;

// ---------------------------------------------------------------- small tools

/** An element with attributes; `on*` are listeners, children are nodes or text. */
function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const harmless = (text) => String(text).replace(HOSTILE, "\ufffd");
const percent = (share) => `${(100 * share).toFixed(3)}%`;
const number = (value, digits = 2) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits).replace("-", "\u2212");
const signed = (value, digits = 2) => (value > 0 ? "+" : "") + number(value, digits);
const many = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : one.endsWith("y") ? "" : "s"}`;

/** Seconds as a clock shows them: 8.0 s, 1:08.0. */
function clock(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

const letter = (place) => String.fromCharCode(65 + place);
const later = (work) => setTimeout(work, 20);
const spaced = (name) => harmless(name).replaceAll("_", " ");
const span = ([start, end]) => `${start.toFixed(1)} to ${end.toFixed(1)} s`;

/** Bytes of whatever carries them: base64 in a page, a DataView from a kernel. */
function bytes(value) {
  if (typeof value === "string") return Uint8Array.from(atob(value), (char) => char.charCodeAt(0));
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  return new Uint8Array(value);
}

async function inflate(packed) {
  const stream = new Blob([bytes(packed)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** A round step that gives about `wanted` ticks. */
function tickStep(duration, wanted) {
  const rough = duration / wanted;
  return [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600].find((step) => step >= rough) ?? Math.ceil(rough);
}

// ---------------------------------------------------------------- chains

/** The columns as Python packed them, and what the table sorts and filters by. */
class Chains {
  constructor(page) {
    this.page = page;
    this.columns = page.columns;
    this.names = page.names;
    this.moments = page.moments;
    this.terms = page.terms;
    this.left = page.left_out ?? null;
    if (this.left) this.spots = new Map(this.left.places.map((place, i) => [place, i]));
    const count = (this.count = this.columns.text.length);
    const column = () => new Float64Array(count);
    this.iou = column();
    this.gain = column();
    this.worse = column();
    this.anchors = column();
    this.total = column();
    this.delta = column();
    this.lost = column();
    this.compared = this.moments.some((moment) => moment.base !== null);
    for (let i = 0; i < count; i++) this.derive(i);
    this.groups = new Map();
    this.asked = new Map();
    for (let i = 0; i < count; i++) {
      const { stage, run, step, moment } = this.columns;
      push(this.groups, `${run[i]} ${stage[i]} ${step[i]} ${moment[i]}`, i);
      push(this.asked, moment[i], i);
    }
    this.keys = new Map();
    this.orders = new Map();
    this.lowered = [];
  }

  /** What a chain was paid by, by term; null where that is not known. */
  weights(i) {
    const which = this.columns.weighed[i];
    return which ? this.page.weights[which - 1] : null;
  }

  /** Whether a step came closer to the truth, fell back, or did neither by the least gain of a step. */
  way(before, after) {
    const least = this.page.least_gain - EPSILON;
    return after - before >= least ? "▲" : before - after >= least ? "▼" : "=";
  }

  derive(i) {
    const ious = this.columns.ious[i];
    const anchors = this.columns.anchors[i].length;
    const answer = this.columns.answer[i] ? ious[ious.length - 1] : 0;
    this.anchors[i] = anchors;
    this.iou[i] = answer;
    this.gain[i] = anchors ? answer - ious[0] : NaN;
    this.lost[i] = Math.max(0, ...ious.slice(0, MOST_STEPS)) - answer;
    for (let k = 1; k < ious.length; k++) if (this.way(ious[k - 1], ious[k]) === "▼") this.worse[i]++;
    this.total[i] = this.columns.total[i] ?? NaN;
    const base = this.moments[this.columns.moment[i]].base;
    this.delta[i] = base === null ? NaN : answer - base;
  }

  /** Where a chain stands among all of them, of which some may not have travelled; and back, -1 for those. */
  place = (i) => this.left?.places[i] ?? i;
  at = (place) => (this.left ? (this.spots.get(place) ?? -1) : place);
  moment = (i) => this.moments[this.columns.moment[i]];
  name = (column, i) => this.names[column][this.columns[column][i]];
  group = (i) => {
    const { stage, run, step, moment } = this.columns;
    return this.groups.get(`${run[i]} ${stage[i]} ${step[i]} ${moment[i]}`);
  };

  /** Names what is wrong with a chain: its class of failure, or else how it broke the form. */
  fault(i) {
    const kind = this.name("kind", i);
    const status = this.name("status", i);
    return kind || (status === "ok" ? "" : status);
  }

  meaning = (i) => this.page.meanings[this.fault(i)] ?? this.fault(i);

  /** Text of every chain in small letters: what has not been made ahead is made now. */
  get haystack() {
    this.lower(this.count);
    return this.lowered;
  }

  /** Make up to `more` of these texts ready to be searched; whether some are still missing. */
  lower(more) {
    const end = Math.min(this.count, this.lowered.length + more);
    for (let i = this.lowered.length; i < end; i++) {
      const { query, qid, video } = this.moment(i);
      this.lowered.push(`${query}\n${qid}\n${video}\n${this.columns.text[i]}`.toLowerCase());
    }
    return end < this.count;
  }

  /** A number for each chain by which a column sorts; texts become their place in the alphabet. */
  sortKey(name) {
    if (this.keys.has(name)) return this.keys.get(name);
    const text = { query: (i) => this.moment(i).query, fault: (i) => this.fault(i) }[name];
    let key;
    if (text) {
      const texts = Array.from({ length: this.count }, (_, i) => text(i));
      const place = new Map([...new Set(texts)].sort().map((each, at) => [each, at]));
      key = Float64Array.from(texts, (each) => place.get(each));
    } else {
      key = this[name] ?? Float64Array.from(this.columns[name]);
    }
    this.keys.set(name, key);
    return key;
  }

  /** All chains in the order of a column; kept, since a filter leaves the order of the others as it is. */
  ordered({ name, down }) {
    const id = `${name} ${down}`;
    if (this.orders.has(id)) return this.orders.get(id);
    const key = this.sortKey(name);
    const way = down ? -1 : 1;
    const order = Uint32Array.from({ length: this.count }, (_, i) => i).sort((a, b) => {
      const x = key[a];
      const y = key[b];
      if (x === y) return a - b;
      // What has no value stands last, whichever way is up.
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) ? (Number.isNaN(y) ? a - b : 1) : -1;
      return way * (x - y);
    });
    this.orders.set(id, order);
    return order;
  }

  /** Places of the chains that pass a filter, sorted. */
  list(filter, sort) {
    const needle = filter.text.trim().toLowerCase();
    const haystack = needle ? this.haystack : null;
    const at = (column, name) => (name ? this.names[column].indexOf(name) : -1);
    const [stage, status, kind] = [at("stage", filter.stage), at("status", filter.status), at("kind", filter.kind)];
    const columns = this.columns;
    const anchors = filter.anchors === "" ? null : Number(filter.anchors);
    const kept = [];
    for (const i of this.ordered(sort)) {
      if (filter.stage && columns.stage[i] !== stage) continue;
      if (filter.status && columns.status[i] !== status) continue;
      if (filter.kind && columns.kind[i] !== kind) continue;
      if (anchors !== null && (anchors === 4 ? this.anchors[i] < 4 : this.anchors[i] !== anchors)) continue;
      if (this.iou[i] < filter.low - EPSILON || this.iou[i] > filter.high + EPSILON) continue;
      if (filter.regress && !REGRESSIONS[filter.regress].holds(this, i)) continue;
      if (needle && !haystack[i].includes(needle)) continue;
      kept.push(i);
    }
    return kept;
  }
}

function push(map, key, value) {
  const found = map.get(key);
  if (found) found.push(value);
  else map.set(key, [value]);
}

const REGRESSIONS = {
  step: { label: "a step got worse", holds: (chains, i) => chains.worse[i] > 0 },
  answer: { label: "answer below best anchor", holds: (chains, i) => chains.lost[i] > EPSILON },
  base: { label: "answer below base", holds: (chains, i) => chains.delta[i] < -EPSILON },
};

const STAGE_LOOKS = {
  base: ["#8a919b", "M6 2.2a3.8 3.8 0 1 0 0 7.6 3.8 3.8 0 1 0 0-7.6M6 4a2 2 0 1 1 0 4 2 2 0 1 1 0-4"],
  harvester: ["#8a919b", "M2.5 2.5h7v7h-7zM4.3 4.3h3.4v3.4H4.3z"],
  grpo: ["#4aa5dd", "M2.5 2.5h7v7h-7z"],
  distill: ["#c4689f", "M2 3.4 3.4 2 6 4.6 8.6 2 10 3.4 7.4 6 10 8.6 8.6 10 6 7.4 3.4 10 2 8.6 4.6 6z"],
  sft: ["#dd8800", "M6 1 11 6 6 11 1 6z"],
  grpo_final: ["#2563b8", "M6 2.2a3.8 3.8 0 1 0 0 7.6 3.8 3.8 0 1 0 0-7.6"],
};
const OTHER_LOOK = ["#7b62c9", "M6 1.5 11 10H1z"];

function stageMark(stage) {
  const [color, path] = Object.hasOwn(STAGE_LOOKS, stage) ? STAGE_LOOKS[stage] : OTHER_LOOK;
  const mark = svg("svg", { viewBox: "0 0 12 12", class: "lk-mark", "aria-hidden": "true" });
  mark.append(svg("path", { d: path, fill: color, "fill-rule": "evenodd" }));
  return mark;
}

const stageName = (stage) => [stageMark(stage), h("span", {}, harmless(stage || "chains"))];

// ---------------------------------------------------------------- clips

/**
 * Sheets by key, decoded when they are needed; the last few stay decoded.
 *
 * `ask(key)` promises the sheet of a clip that did not travel along; without it there is nobody to ask.
 */
class Clips {
  constructor(stored, ask = null) {
    this.stored = stored;
    this.ask = ask;
    this.decoded = new Map();
  }

  has = (key) => Boolean(this.stored[key]);

  /** @returns {Promise<{bitmap: ImageBitmap, frames: number, columns: number, width: number, height: number, step: number}>} */
  get(key) {
    const found = this.decoded.get(key);
    this.decoded.delete(key);
    const promise = found ?? this.decode(key);
    this.decoded.set(key, promise);
    promise.catch(() => this.decoded.delete(key));
    for (const [old, clip] of this.decoded) {
      if (this.decoded.size <= KEPT_SHEETS) break;
      this.decoded.delete(old);
      clip.then((each) => each.bitmap.close()).catch(() => {});
    }
    return promise;
  }

  async decode(key) {
    const clip = this.stored[key] ?? (await this.ask?.(key));
    if (!clip) throw new Error(`This page holds the frames of ${many(Object.keys(this.stored).length, "clip")}, not of this one.`);
    if (clip.error) throw new Error(clip.error);
    this.stored[key] = clip;
    const bitmap = await createImageBitmap(new Blob([bytes(clip.sheet)], { type: "image/webp" }));
    return { ...clip, bitmap };
  }

  close() {
    for (const clip of this.decoded.values()) clip.then((each) => each.bitmap.close()).catch(() => {});
    this.decoded.clear();
  }
}

// ---------------------------------------------------------------- player

/**
 * A bar of the tracks.
 * @typedef {{span: number[], look: string, name: string, step?: number, iou?: number, note?: string}} Bar
 * A row of the tracks: a label, its bars, and what stands at its end. `thin` stacks the bars.
 * @typedef {{label: (Node|string)[], bars: Bar[], end?: string, thin?: boolean, chain?: number, title?: string}} TrackRow
 */

/** The frame, the scrub bar and the tracks under it: one clip, one time, any rows of bars. */
class Player {
  constructor(root, { onTime, onHot, onBar, onRow = () => {}, hint }) {
    Object.assign(this, { root, onTime, onHot, onBar, onRow });
    this.time = 0;
    this.duration = 1;
    this.clip = null;
    this.shown = -1;
    this.speed = 1;
    this.wanted = null;
    this.build(hint);
  }

  build(hint) {
    this.canvas = h("canvas", { class: "lk-canvas", role: "img", "aria-label": "frame of the video" });
    this.note = h("p", { class: "lk-note", role: "status" });
    this.screen = h("div", { class: "lk-screen" }, this.canvas, this.note);
    this.button = h("button", { type: "button", class: "lk-play", "aria-label": "play", title: "play or pause (space)", onclick: () => this.toggle() });
    this.playing = null;
    this.face();
    this.clockText = h("span", { class: "lk-clock" });
    this.select = h("select", { "aria-label": "speed", class: "lk-speed", onchange: () => (this.speed = Number(this.select.value)) });
    for (const speed of SPEEDS) this.select.append(h("option", { value: speed, selected: speed === 1 }, `${speed}×`));
    this.hint = h("span", { class: "lk-hint", "aria-hidden": "true" }, ...hint.flatMap(([key, text]) => [h("kbd", {}, key), `${text} `]));
    this.controls = h("div", { class: "lk-controls" }, this.button, this.clockText, this.select, this.hint);

    this.strip = h("canvas", { class: "lk-strip", "aria-hidden": "true" });
    this.slider = h("div", { class: "lk-slider", role: "slider", tabindex: "0", "aria-label": "time in the clip", "aria-orientation": "horizontal" }, this.strip);
    this.focus = h("div", { class: "lk-focus", hidden: true });
    this.head = h("div", { class: "lk-head" });
    this.bands = h("div", { class: "lk-bands" });
    this.funnel = svg("svg", { class: "lk-funnel", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.over = h("div", { class: "lk-over" }, this.bands, this.funnel);
    this.rows = h("div", { class: "lk-tracks-rows" });
    this.axis = h("div", { class: "lk-axis", "aria-hidden": "true" });
    this.tracks = h(
      "div",
      { class: "lk-tracks" },
      this.over,
      h("div", { class: "lk-track-row lk-film-row" }, h("span", {}), this.slider, h("span", {})),
      this.rows,
      h("div", { class: "lk-track-row lk-axis-row" }, h("span", {}), this.axis, h("span", {})),
      h("div", { class: "lk-over lk-over-top" }, h("div", { class: "lk-focus-frame" }, this.focus), this.head),
    );
    this.drag(this.slider);
    this.drag(this.over);
    this.resized = new ResizeObserver(() => this.drawStrip());
    this.resized.observe(this.slider);
  }

  /** Scrub by dragging; the pointer may leave the element meanwhile. */
  drag(area) {
    const at = (event) => {
      const box = this.slider.getBoundingClientRect();
      this.stop();
      this.setTime(((event.clientX - box.left) / box.width) * this.duration);
    };
    area.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      area.setPointerCapture(event.pointerId);
      this.dragging = true;
      at(event);
    });
    area.addEventListener("pointermove", (event) => this.dragging && at(event));
    for (const end of ["pointerup", "pointercancel"]) area.addEventListener(end, () => (this.dragging = false));
  }

  /** Show a clip: rows and times at once, its frames when they are there. */
  async load(promise, { duration, waiting = "" }) {
    this.stop();
    this.duration = duration;
    this.clip = null;
    this.shown = -1;
    this.canvas.hidden = true;
    this.slider.setAttribute("aria-valuemin", 0);
    this.slider.setAttribute("aria-valuemax", duration.toFixed(1));
    this.drawAxis();
    this.drawStrip();
    this.tell("loading", "");
    this.wanted = promise;
    const patience = setTimeout(() => this.wanted === promise && this.tell("loading", waiting), PATIENCE);
    try {
      const clip = await promise;
      if (this.wanted !== promise) return;
      this.clip = clip;
      this.canvas.width = clip.width;
      this.canvas.height = clip.height;
      this.canvas.hidden = false;
      this.canvas.classList.toggle("lk-pixels", clip.width < 160);
      this.screen.style.setProperty("--aspect", clip.width / clip.height);
      this.drawFrame(this.time);
      this.drawStrip();
      this.tell("ready", "");
    } catch (error) {
      if (this.wanted === promise) this.tell(error.name === "Error" ? "none" : "error", error.message);
    } finally {
      clearTimeout(patience);
    }
  }

  tell(state, text) {
    this.root.dataset.media = state;
    this.note.textContent = harmless(text);
    this.note.hidden = !text;
  }

  setTime(time) {
    this.time = time = clamp(time, 0, this.duration);
    this.head.style.left = percent(time / this.duration);
    this.clockText.textContent = `${clock(time)} / ${clock(this.duration)}`;
    this.slider.setAttribute("aria-valuenow", time.toFixed(2));
    this.slider.setAttribute("aria-valuetext", clock(time));
    this.drawFrame(time);
    this.onTime(time);
  }

  drawFrame(time) {
    const clip = this.clip;
    if (!clip) return;
    const frame = clamp(Math.floor(time / clip.step + 1e-4), 0, clip.frames - 1);
    if (frame === this.shown) return;
    this.shown = frame;
    const { width, height, columns } = clip;
    const context = this.canvas.getContext("2d");
    context.drawImage(clip.bitmap, (frame % columns) * width, Math.floor(frame / columns) * height, width, height, 0, 0, width, height);
    this.root.dataset.frame = frame;
  }

  /** As many frames as fit side by side, each from the middle of its place. */
  drawStrip() {
    const { clientWidth: width, clientHeight: height } = this.slider;
    const scale = globalThis.devicePixelRatio || 1;
    this.strip.width = Math.round(width * scale);
    this.strip.height = Math.round(height * scale);
    const clip = this.clip;
    if (!clip || !width) return;
    const context = this.strip.getContext("2d");
    context.scale(scale, scale);
    context.imageSmoothingQuality = "high";
    const places = Math.max(1, Math.round(width / ((height * clip.width) / clip.height)));
    const each = width / places;
    // A frame keeps its proportions: what is too wide for its place loses its sides.
    const cut = Math.min(clip.width, (clip.height * each) / height);
    const tall = Math.min(clip.height, (clip.width * height) / each);
    for (let place = 0; place < places; place++) {
      const frame = Math.floor((((place + 0.5) / places) * this.duration) / clip.step);
      if (frame >= clip.frames) continue;
      const x = (frame % clip.columns) * clip.width + (clip.width - cut) / 2;
      const y = Math.floor(frame / clip.columns) * clip.height + (clip.height - tall) / 2;
      context.drawImage(clip.bitmap, x, y, cut, tall, place * each, 0, each, height);
    }
  }

  drawAxis() {
    const step = tickStep(this.duration, 8);
    const ticks = [];
    for (let time = 0; time <= this.duration + EPSILON; time += step) {
      const label = this.duration >= 90 ? clock(time).replace(/\.0( s)?$/, "") : `${Number(time.toFixed(1))}`;
      const tick = h("span", { class: "lk-tick" }, label);
      tick.style.left = percent(time / this.duration);
      ticks.push(tick);
    }
    ticks.at(-1).append(this.duration >= 90 ? "" : " s");
    this.axis.replaceChildren(...ticks);
  }

  /** @param {TrackRow[]} rows @param {number[][]} truths bands behind all rows @param {boolean} funnel shade between rows */
  setRows(rows, truths = [], funnel = false) {
    // Among the rows of several chains, a step is that of the selected one.
    const own = rows.some((row) => row.on) ? rows.filter((row) => row.on || row.truth) : rows;
    this.bars = own.flatMap((row) => row.bars);
    this.rows.replaceChildren(...rows.map((row) => this.row(row)));
    this.bands.replaceChildren(
      ...truths.map(([start, end]) => {
        const band = h("div", { class: "lk-band" });
        this.place(band, [start, end]);
        return band;
      }),
    );
    this.drawFunnel(funnel ? rows : []);
    this.setHot(null);
  }

  place(node, [start, end]) {
    const [from, to] = [clamp(start, 0, this.duration), clamp(end, 0, this.duration)];
    node.style.left = percent(from / this.duration);
    node.style.width = percent((to - from) / this.duration);
  }

  row(row) {
    const track = h("div", { class: row.thin ? "lk-track lk-thin" : "lk-track" });
    row.bars.forEach((bar, at) => track.append(...this.bar(bar, row, at)));
    if (row.thin && !track.children.length) track.append(h("span", { class: "lk-outside" }, row.bars.length ? "outside the video" : "no span was read"));
    const label = row.chain === undefined
      ? h("span", { class: "lk-label" }, ...row.label)
      : h("button", { type: "button", class: "lk-label lk-pick", title: row.title, onclick: () => this.onRow(row.chain) }, ...row.label);
    const kept = ["lk-track-row", row.thin && "lk-thin-row", row.on && "lk-on", row.truth && "lk-truth-row"].filter(Boolean);
    const node = h("div", { class: kept.join(" "), "data-row-chain": row.chain }, label, track, h("span", { class: "lk-end" }, ...(row.end ?? [])));
    if (row.thin) node.style.setProperty("--bars", Math.max(3, row.bars.length));
    return node;
  }

  bar(bar, row, at) {
    const [start, end] = bar.span;
    const name = `${bar.name}: ${span(bar.span)}${bar.iou === undefined ? "" : `, IoU ${number(bar.iou)}`}`;
    if (end <= 0 || start >= this.duration) {
      return row.thin ? [] : [h("span", { class: "lk-outside" }, `${span(bar.span)}: outside the video`)];
    }
    if (row.thin) {
      const thin = h("div", { class: `lk-bar lk-${bar.look}`, title: name });
      thin.style.setProperty("--at", at);
      if (bar.shade) thin.style.setProperty("--shade", bar.shade);
      this.place(thin, bar.span);
      return [thin];
    }
    const node = h("button", {
      type: "button",
      class: `lk-bar lk-${bar.look}`,
      "aria-label": name,
      title: `${name}\nclick: go there · double-click: play it`,
      "data-step": bar.step,
      onclick: () => this.onBar(bar),
      ondblclick: () => this.play(bar.span),
      onpointerenter: () => this.onHot(bar.step),
      onpointerleave: () => this.onHot(null),
      onfocus: () => this.onHot(bar.step),
      onblur: () => this.onHot(null),
    });
    if (bar.shade) node.style.setProperty("--shade", bar.shade);
    this.place(node, bar.span);
    if (!bar.note) return [node];
    const note = h("span", { class: "lk-bar-note", "aria-hidden": "true" }, ...bar.note);
    const behind = clamp(end, 0, this.duration) / this.duration;
    if (behind < 0.86) note.style.left = percent(behind);
    else if (start / this.duration > 0.14) note.style.right = percent(1 - clamp(start, 0, this.duration) / this.duration);
    else Object.assign(note.style, { right: percent(1 - behind) }), note.classList.add("lk-inside");
    return [node, note];
  }

  drawFunnel(rows) {
    const steps = rows.filter((row) => !row.truth).map((row) => row.bars[0]?.span);
    const first = rows.findIndex((row) => !row.truth);
    const height = 28;
    this.funnel.setAttribute("viewBox", `0 0 1000 ${Math.max(1, rows.length * height)}`);
    const at = (time) => ((1000 * clamp(time, 0, this.duration)) / this.duration).toFixed(1);
    const shades = [];
    for (let k = 0; k + 1 < steps.length; k++) {
      const [a, b] = [steps[k], steps[k + 1]];
      if (!a || !b || Math.min(a[1], this.duration) <= a[0] || Math.min(b[1], this.duration) <= b[0]) continue;
      const [top, bottom] = [(first + k + 1) * height - 5, (first + k + 1) * height + 5];
      shades.push(svg("polygon", { points: `${at(a[0])},${top} ${at(a[1])},${top} ${at(b[1])},${bottom} ${at(b[0])},${bottom}` }));
    }
    this.funnel.replaceChildren(...shades);
    this.funnel.style.height = `${rows.length * height}px`;
  }

  /** Highlight a step, and show the frames under its bar. */
  setHot(step) {
    const bar = step === null || step === undefined ? null : this.bars?.find((each) => each.step === step);
    this.focus.hidden = !bar;
    if (bar) this.place(this.focus, bar.span);
    if (this.playing) return;
    this.drawFrame(bar ? clamp((bar.span[0] + bar.span[1]) / 2, 0, this.duration) : this.time);
  }

  play(range = null) {
    this.stop();
    const [from, to] = range ?? [this.time >= this.duration - 0.05 ? 0 : this.time, this.duration];
    const end = Math.min(to, this.duration);
    let time = from;
    let before = null;
    this.setTime(time);
    const tick = (now) => {
      time += before === null ? 0 : ((now - before) / 1000) * this.speed;
      before = now;
      this.setTime(Math.min(time, end));
      if (time >= end) this.stop();
      else this.playing = requestAnimationFrame(tick);
    };
    this.playing = requestAnimationFrame(tick);
    this.face();
  }

  stop() {
    if (this.playing) cancelAnimationFrame(this.playing);
    this.playing = null;
    this.face();
  }

  toggle() {
    if (this.playing) this.stop();
    else this.play();
  }

  face() {
    const path = this.playing ? "M3 2h3v10H3zM8 2h3v10H8z" : "M3.5 1.5v11l9-5.5z";
    this.button.setAttribute("aria-label", this.playing ? "pause" : "play");
    this.button.replaceChildren(svg("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, svg("path", { d: path })));
    this.root.dataset.playing = this.playing ? "true" : "false";
  }

  faster(by) {
    this.speed = SPEEDS[clamp(SPEEDS.indexOf(this.speed) + by, 0, SPEEDS.length - 1)];
    this.select.value = this.speed;
  }

  step(frames) {
    this.stop();
    const step = this.clip?.step ?? 0.5;
    this.setTime((Math.floor(this.time / step + 1e-4) + frames) * step);
  }

  close() {
    this.stop();
    this.resized.disconnect();
  }
}

// ---------------------------------------------------------------- table

/** All chains in a list of which only the rows in sight exist. */
class Table {
  constructor(chains, { onSelect, onSort }) {
    Object.assign(this, { chains, onSelect, onSort });
    this.view = [];
    this.selected = -1;
    this.id = `lk${Math.random().toString(36).slice(2, 8)}`;
    this.build();
  }

  static columns(chains) {
    const columns = [
      { name: "stage", label: "stage", width: "minmax(86px, .5fr)", cell: (i) => stageName(chains.name("stage", i)) },
      { name: "step", label: "step", width: "34px", cell: (i) => [chains.columns.step[i] || "–"], right: true, wide: true },
      { name: "query", label: "query", width: "minmax(120px, 3fr)", cell: (i) => [harmless(chains.moment(i).query)] },
      { name: "anchors", label: "anchors", width: "48px", cell: (i) => [chains.anchors[i]], right: true, down: true },
      { name: "iou", label: "IoU", width: "62px", cell: (i) => iouCell(chains.iou[i]), right: true, down: true },
      { name: "gain", label: "gain", title: "IoU of the answer less that of the first anchor", width: "46px", cell: (i) => change(chains.gain[i]), right: true, down: true, wide: true },
      { name: "delta", label: "vs base", title: "IoU less the base model's on the same query", width: "54px", cell: (i) => change(chains.delta[i]), right: true, down: true, off: !chains.compared },
      { name: "total", label: "reward", width: "50px", cell: (i) => [number(chains.total[i])], right: true, down: true },
      { name: "fault", label: "fault", title: "class of failure, or how the form was broken", width: "minmax(62px, .8fr)", cell: (i) => [h("span", { title: chains.meaning(i) }, spaced(chains.fault(i)))], off: !someFault(chains) },
    ];
    const used = columns.filter((column) => !column.off);
    return chains.count < 2 ? used : used.filter((column) => !Table.constant(chains, column.name));
  }

  /** Whether a column says the same of all chains, which is then said once and not in every row. */
  static constant(chains, name) {
    if (["query", "iou"].includes(name)) return false;
    const { kind, status } = chains.columns;
    const column = chains[name] ?? chains.columns[name];
    const value = name === "fault" ? (i) => kind[i] * 64 + status[i] : (i) => column[i];
    for (let i = 1; i < chains.count; i++) if (!Object.is(value(i), value(0))) return false;
    return true;
  }

  build() {
    this.columns = Table.columns(this.chains);
    this.header = h("div", { role: "row", "aria-rowindex": 1, class: "lk-row lk-header" });
    for (const column of this.columns) {
      const button = h("button", { type: "button", title: column.title ?? `sort by ${column.label}`, onclick: () => this.onSort(column.name, column.down) }, column.label);
      this.header.append(h("div", { role: "columnheader", class: cellClass(column), "data-column": column.name }, button));
    }
    this.rows = h("div", { class: "lk-rows", role: "rowgroup" });
    this.empty = h("p", { class: "lk-empty", hidden: true }, this.chains.count ? "No chain passes these filters. Press 0 to lift them." : "There are no chains yet.");
    const head = h("div", { role: "rowgroup", class: "lk-head-rows" }, this.header);
    this.node = h("div", { class: "lk-table", role: "grid", tabindex: "0", "aria-label": "chains", "aria-colcount": this.columns.length, onscroll: () => this.paint() }, head, this.rows);
    this.frame = h("div", { class: "lk-table-frame" }, this.node, this.empty);
    this.frame.style.setProperty("--columns", this.columns.map((column) => column.width).join(" "));
    this.frame.style.setProperty("--columns-narrow", this.columns.filter((column) => !column.wide).map((column) => column.width).join(" "));
    this.resized = new ResizeObserver(() => this.paint());
    this.resized.observe(this.node);
  }

  set(view, sort) {
    this.view = view;
    this.node.setAttribute("aria-rowcount", view.length + 1);
    this.rows.style.height = `${view.length * ROW}px`;
    this.empty.hidden = view.length > 0;
    for (const cell of this.header.children) {
      const on = cell.dataset.column === sort.name;
      if (on) cell.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    this.paint();
  }

  /** Pixels of rows in sight, under the header that stays. */
  get height() {
    return this.node.clientHeight - ROW;
  }

  paint() {
    const height = this.height || 400;
    const seen = Math.ceil(height / ROW) + 1;
    const spare = clamp((MOST_ROWS - seen) >> 1, 0, SPARE_ROWS);
    const first = Math.max(0, Math.floor(this.node.scrollTop / ROW) - spare);
    const last = Math.min(this.view.length, first + seen + 2 * spare);
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this.row(at));
    this.rows.replaceChildren(...rows);
    const shown = this.view.indexOf(this.selected);
    if (shown >= first && shown < last) this.node.setAttribute("aria-activedescendant", `${this.id}-${this.selected}`);
    else this.node.removeAttribute("aria-activedescendant");
  }

  row(at) {
    const i = this.view[at];
    const on = i === this.selected;
    const row = h("div", { role: "row", id: `${this.id}-${i}`, class: on ? "lk-row lk-on" : "lk-row", "aria-rowindex": at + 2, "aria-selected": on, "data-index": i, onclick: () => this.onSelect(i) });
    row.style.top = `${at * ROW}px`;
    for (const column of this.columns) row.append(h("div", { role: "gridcell", class: cellClass(column) }, ...column.cell(i)));
    return row;
  }

  select(i, reveal = true) {
    const first = this.selected < 0;
    this.selected = i;
    const at = this.view.indexOf(i);
    const { height } = this;
    if (reveal && at >= 0 && height > 0) {
      const top = at * ROW;
      if (first) this.node.scrollTop = top - height / 2;
      if (top < this.node.scrollTop) this.node.scrollTop = top;
      else if (top + ROW > this.node.scrollTop + height) this.node.scrollTop = top + ROW - height;
    }
    this.paint();
  }

  close() {
    this.resized.disconnect();
  }
}

const cellClass = (column) => ["lk-cell", column.right && "lk-right", column.wide && "lk-wide", `lk-c-${column.name}`].filter(Boolean).join(" ");
const someFault = (chains) => chains.names.kind.some(Boolean) || chains.names.status.some((status) => status !== "ok");

function iouCell(iou) {
  const bar = h("span", { class: iou >= RIGHT ? "lk-meter" : "lk-meter lk-low", "aria-hidden": "true" });
  bar.style.setProperty("--share", percent(iou));
  return [bar, h("span", {}, number(iou))];
}

function change(value) {
  if (Number.isNaN(value)) return ["–"];
  const way = value > EPSILON ? "lk-up" : value < -EPSILON ? "lk-down" : "";
  return [h("span", { class: way }, Math.abs(value) < 0.005 ? number(0) : signed(value))];
}

// ---------------------------------------------------------------- what is said of one chain

const LOOKS = { truth: "truth", answer: "answer" };

/** Spans of a chain in the order in which it names them, the answer last. */
function steps(chains, i) {
  const { anchors, answer, ious } = chains.columns;
  const found = anchors[i].map((anchor, k) => ({ step: k, name: `anchor ${k + 1}`, look: "anchor", at: anchor, iou: ious[i][k] }));
  if (answer[i]) found.push({ step: found.length, name: "answer", look: "answer", at: answer[i], iou: ious[i].at(-1) });
  return found;
}

/** @returns {Bar} */
function stepBar(chains, step, before, count) {
  const way = before === undefined ? "" : chains.way(before, step.iou);
  const mark = way && h("span", { class: { "▲": "lk-up", "▼": "lk-down" }[way] ?? "" }, ` ${way}`);
  return {
    span: step.at.slice(0, 2),
    look: step.look,
    name: step.name,
    step: step.step,
    iou: step.iou,
    shade: step.look === "anchor" ? `${Math.round(58 + (42 * (step.step + 1)) / Math.max(1, count))}%` : null,
    note: [number(step.iou), ...(mark ? [mark] : [])],
  };
}

const truthRow = (moment) => ({
  label: ["truth"],
  truth: true,
  bars: moment.windows.map((window) => ({ span: window, look: "truth", name: "truth", step: "truth" })),
  end: [moment.windows.length === 1 ? times(moment.windows[0]) : `${moment.windows.length} windows`],
});

/** A span as short as it can be said. */
const times = ([start, end]) => (end < 1000 ? `${start.toFixed(1)}–${end.toFixed(1)}` : `${whole(start)}–${whole(end)}`);
const whole = (seconds) => `${Math.floor(Math.round(seconds) / 60)}:${String(Math.round(seconds) % 60).padStart(2, "0")}`;

/** @returns {TrackRow[]} */
function chainRows(chains, i) {
  const all = steps(chains, i);
  const anchors = all.filter((step) => step.look === "anchor");
  const shown = all.filter((step) => step.look === "answer" || step.step < MOST_STEPS);
  const rows = shown.map((step, k) => ({
    label: [step.name],
    bars: [stepBar(chains, step, shown[k - 1]?.iou, Math.min(anchors.length, MOST_STEPS))],
    end: [times(step.at)],
  }));
  if (anchors.length > MOST_STEPS) rows.splice(MOST_STEPS, 0, { label: [`${anchors.length - MOST_STEPS} more`], bars: [] });
  if (!chains.columns.answer[i]) rows.push({ label: ["answer"], bars: [], end: ["none"] });
  return [truthRow(chains.moment(i)), ...rows];
}

/** A chain as one row of thin bars. */
function thinRow(chains, i, label, end, on, title) {
  const all = steps(chains, i).filter((step) => step.look === "answer" || step.step < 5);
  const count = all.filter((step) => step.look === "anchor").length;
  return { label, end, on, thin: true, chain: i, title, bars: all.map((step, k) => stepBar(chains, step, all[k - 1]?.iou, count)) };
}

/** A chain's own words: its anchors and its answer as chips, tags only where they are what went wrong. */
function thought(chains, i, { live = null, same = 0 } = {}) {
  const text = chains.columns.text[i];
  const whole = ["ok", "no_anchor"].includes(chains.name("status", i));
  const nodes = [];
  const plain = (piece, from) => {
    for (const part of piece.split(/(<\/?(?:think|timestamp|answer|option)>)/)) {
      const cut = clamp(same - from, 0, part.length);
      from += part.length;
      if (/^<\/?\w+>$/.test(part)) {
        if (!(whole && part.endsWith("think>"))) nodes.push(h("span", { class: "lk-tag" }, part));
        continue;
      }
      if (cut) nodes.push(h("span", { class: "lk-same" }, harmless(part.slice(0, cut))));
      if (cut < part.length) nodes.push(harmless(part.slice(cut)));
    }
  };
  let at = 0;
  const chips = steps(chains, i).map((step) => {
    const made = (words) => (live ? chip(step, `${words} s`, live) : h("span", { class: `lk-chip lk-${step.look}` }, `${words} s`));
    return [...step.at.slice(2), made];
  });
  const option = chains.columns.option_chars?.[i];
  if (option) chips.push([...option, (words) => optionChip(chains, i, words)]);
  for (const [begin, end, made] of chips) {
    if (begin < at) continue;
    plain(text.slice(at, begin), at);
    nodes.push(made(harmless(text.slice(begin, end).replace(/<\/?\w+>/g, "").trim())));
    at = end;
  }
  plain(text.slice(at), at);
  return text ? nodes : [h("em", {}, "the model wrote nothing")];
}

/** The option that was chosen, as it was written, and whether it is the right one. */
function optionChip(chains, i, words) {
  const { options, choice } = chains.moment(i);
  const chosen = chains.columns.option[i];
  const right = chosen === choice;
  const title = `chosen: ${letter(chosen)} ${harmless(options[chosen])}; ${right ? "right" : `right is ${letter(choice)} ${harmless(options[choice])}`}`;
  return h("span", { class: right ? "lk-chip lk-choice lk-right-choice" : "lk-chip lk-choice", title }, `${words} ${right ? "✓" : "✗"}`);
}

function chip(step, words, { onHot, onBar, onPlay }) {
  const bar = { span: step.at.slice(0, 2), step: step.step };
  return h(
    "button",
    {
      type: "button",
      class: `lk-chip lk-${step.look}`,
      "data-step": step.step,
      "aria-label": `${step.name}, ${words}, IoU ${number(step.iou)}`,
      title: `${step.name}, IoU ${number(step.iou)}\nclick: go there · double-click: play it`,
      onclick: () => onBar(bar),
      ondblclick: () => onPlay(bar.span),
      onpointerenter: () => onHot(step.step),
      onpointerleave: () => onHot(null),
      onfocus: () => onHot(step.step),
      onblur: () => onHot(null),
    },
    words,
  );
}

const table = (attributes, head, ...rows) =>
  h("table", attributes, h("thead", {}, h("tr", {}, ...head.map((cell) => (cell ? h("th", { scope: "col" }, cell) : h("td"))))), h("tbody", {}, ...rows));
const line = (name, cells, attributes = {}) =>
  h("tr", attributes, h("th", { scope: "row" }, ...name), ...cells.map((cell) => h("td", {}, ...cell)));

/** Every term of a chain's reward, what it counts for, and why. */
function ledger(chains, i) {
  const { earned, total, advantage, reasons } = chains.columns;
  const unpaid = total[i] === null && earned[i].every((each) => each === null);
  if (unpaid) return [h("div", { class: "lk-side-title" }, "No reward ", h("small", {}, "a prediction is not paid"))];
  const weights = chains.weights(i);
  const counts = chains.terms.map((term, k) => (weights ? weights[term] : 1) * (earned[i][k] ?? 0));
  const scale = Math.max(1, ...counts.map(Math.abs));
  const rows = chains.terms.map((term, k) => {
    const cells = [[number(earned[i][k])], [weights ? `× ${weights[term]}` : "× ?"], [weights ? number(counts[k]) : "–"], [amount(counts[k] / scale)]];
    const node = line([term], cells, { class: weights && weights[term] === 0 ? "lk-idle" : "" });
    const reason = chains.names.reason[reasons[i][k]];
    return [node, reason ? h("tr", { class: "lk-reason" }, h("td", { colspan: "5" }, harmless(reason))) : null];
  });
  const group = chains.group(i);
  const mean = group.reduce((sum, each) => sum + chains.total[each], 0) / group.length;
  const sum = line(["total"], [[""], [""], [h("b", {}, number(total[i]))], [""]], { class: "lk-sum" });
  const paid = advantage[i] === null
    ? "as the reward would have paid: not sampled in training"
    : `advantage ${signed(advantage[i])} in its group of ${group.length}, mean ${number(mean)}`;
  return [
    h("div", { class: "lk-side-title" }, `Reward ${number(total[i])} `, h("small", {}, paid)),
    table({ class: "lk-ledger" }, ["term", "earned", "weight", "counts", ""], ...rows.flat().filter(Boolean), sum),
    ...(weights ? [] : [h("p", { class: "lk-aside" }, OTHER_WEIGHTS)]),
  ];
}

const OTHER_WEIGHTS = "These rollouts do not say what they were paid by, and no weights that are known here explain the total: terms are shown without.";

/** A bar to the right for what was earned, to the left for what was lost. */
function amount(share) {
  const bar = h("span", { class: share < 0 ? "lk-amount lk-minus" : "lk-amount", "aria-hidden": "true" });
  bar.style.setProperty("--share", percent(Math.abs(share) / 2));
  return bar;
}

/** The chains of one prompt from best to worst. */
function ranked(chains, i) {
  const value = (each) => (Number.isNaN(chains.total[each]) ? -Infinity : chains.total[each]);
  return [...chains.group(i)].sort((a, b) => value(b) - value(a) || chains.iou[b] - chains.iou[a] || a - b);
}

/** What a term adds to a chain's total; what it earned, where its weight is not known. */
function contribution(chains, i, k) {
  return (chains.weights(i)?.[chains.terms[k]] ?? 1) * (chains.columns.earned[i][k] ?? 0);
}

/** Why the chains of a group earned differently: in words, then term by term. */
function groupPanel(chains, i) {
  const order = ranked(chains, i);
  if (order.length === 1) {
    return [h("p", { class: "lk-why" }, "One chain was sampled for this prompt: there is no other to compare it with."), ...ledger(chains, i)];
  }
  const [best, worst] = [order[0], order.at(-1)];
  const known = order.every((each) => chains.weights(each));
  const falls = chains.terms.map((term, k) => ({ term, k, fall: contribution(chains, best, k) - contribution(chains, worst, k) }));
  const scale = Math.max(0.01, ...chains.terms.flatMap((_, k) => order.map((each) => Math.abs(contribution(chains, each, k)))));
  const rows = falls.map(({ term, k, fall }) => {
    const cells = [best, i, worst].map((each) => [number(contribution(chains, each, k))]);
    return line([term], [...cells, [dots(order.map((each) => contribution(chains, each, k) / scale), order.indexOf(i))]], {
      class: Math.abs(fall) < EPSILON ? "lk-idle" : "",
    });
  });
  const totals = [best, i, worst].map((each) => [h("b", {}, number(chains.total[each]))]);
  return [
    h("div", { class: "lk-side-title" }, "Why they differ"),
    h("p", { class: "lk-why" }, why(chains, order, known ? falls : [])),
    table({ class: "lk-ledger lk-compare" }, [known ? "adds" : "earned", "best", "this", "worst", "all"], ...rows, line(["total"], [...totals, [""]], { class: "lk-sum" })),
    ...(known ? [] : [h("p", { class: "lk-aside" }, OTHER_WEIGHTS)]),
  ];
}

function why(chains, order, falls) {
  const [best, worst] = [order[0], order.at(-1)];
  const fall = chains.total[best] - chains.total[worst];
  const answers = new Set(order.map((each) => String(chains.columns.answer[each]?.slice(0, 2)))).size;
  const said = [`${answers === 1 ? "All give one answer" : `${answers} different answers`} among ${order.length} chains.`];
  if (!(fall > EPSILON)) {
    said.unshift(`All earned ${number(chains.total[best])}: no advantage, nothing to learn from this group.`);
  } else {
    const parts = falls.filter((each) => Math.abs(each.fall) > 0.005).sort((a, b) => Math.abs(b.fall) - Math.abs(a.fall));
    const named = parts.slice(0, 2).map((each) => `${each.term} ${signed(-each.fall)}`);
    said.unshift(`From best to worst the reward falls by ${number(fall)}${named.length ? `: ${named.join(", then ")}` : ""}.`);
  }
  const broken = order.filter((each) => !["ok", "no_anchor"].includes(chains.name("status", each))).length;
  if (broken) said.push(`${broken} broke the form.`);
  return said.join(" ");
}

/** Where all chains of a group lie on one term, the selected one filled. */
function dots(shares, chosen) {
  const picture = svg("svg", { viewBox: "0 0 100 16", class: "lk-dots", "aria-hidden": "true", preserveAspectRatio: "none" });
  picture.append(svg("line", { x1: 50, x2: 50, y1: 1, y2: 15 }));
  const at = (share) => (50 + 46 * clamp(share, -1, 1)).toFixed(1);
  shares.forEach((share, k) => k !== chosen && picture.append(svg("path", { d: `M${at(share)} 4v8` })));
  if (chosen >= 0) picture.append(svg("path", { d: `M${at(shares[chosen])} 1v14`, class: "lk-chosen" }));
  return picture;
}

/** For each stage the chain to show of a query: the selected one, else the first sample of the latest step. */
function throughStages(chains, i) {
  const all = chains.asked.get(chains.columns.moment[i]);
  return chains.names.stage
    .map((stage, at) => {
      const own = all.filter((each) => chains.columns.stage[each] === at);
      const { step, sample } = chains.columns;
      const latest = own.reduce((a, b) => (a === null || step[b] > step[a] || (step[b] === step[a] && sample[b] < sample[a]) ? b : a), null);
      return { stage, own, shown: own.includes(i) ? i : latest };
    })
    .filter((each) => each.own.length);
}

function stagesPanel(chains, i) {
  const found = throughStages(chains, i);
  const mean = (list, value) => list.reduce((sum, each) => sum + value(each), 0) / list.length;
  const rows = found.map(({ stage, own }) =>
    line(stageName(stage), [
      [own.length],
      [number(mean(own, (each) => chains.anchors[each]), 1)],
      [number(mean(own, (each) => chains.iou[each]))],
      [`${Math.round(100 * mean(own, (each) => Number(chains.iou[each] >= RIGHT)))} %`],
    ]),
  );
  const missing = chains.names.stage.filter((stage) => !found.some((each) => each.stage === stage));
  return [
    h("div", { class: "lk-side-title" }, "This query through the stages"),
    table({ class: "lk-ledger lk-stages-table" }, ["stage", "chains", "anchors", "mean IoU", "IoU ≥ 0.5"], ...rows),
    missing.length ? h("p", { class: "lk-aside" }, `Not asked in: ${harmless(missing.join(", "))}.`) : "",
    chains.left ? h("p", { class: "lk-aside" }, "Counted over the chains that travelled along.") : "",
    h("p", { class: "lk-aside" }, "The bars show one chain of each stage: the selected one, else the latest step's first sample."),
  ];
}

function commonStart(a, b) {
  let at = 0;
  while (at < Math.min(a.length, b.length) && a[at] === b[at]) at++;
  return a.lastIndexOf(" ", at) + 1;
}

// ---------------------------------------------------------------- explorer

const NO_FILTER = { text: "", stage: "", status: "", kind: "", anchors: "", regress: "", low: 0, high: 1 };
const VIEWS = { chain: "Chain", group: "Group", stages: "Stages" };
/** What a page shares with Python, and where it stands in the filter. */
const SHARED = { filter: "text", stage: "stage", kind: "kind" };

class Explorer {
  constructor(el, { page, clips, height = 700 }, host) {
    Object.assign(this, { el, host, clips, height });
    this.chains = new Chains(page);
    this.filter = { ...NO_FILTER };
    this.sort = { name: "iou", down: true };
    this.view = "chain";
    this.selected = -1;
    this.build();
    this.restore();
    this.ahead = later(() => this.prepare());
  }

  /** Get ready to be searched while nobody waits, a few chains at a time. */
  prepare() {
    if (this.chains.lower(AHEAD)) this.ahead = later(() => this.prepare());
  }

  build() {
    this.root = h("section", { class: "lk lk-explorer", "aria-label": "chain explorer", tabindex: "-1", "data-lm-suppress-shortcuts": "true" });
    this.root.style.setProperty("--height", `${this.height}px`);
    this.table = new Table(this.chains, { onSelect: (i) => this.pick(i), onSort: (name, down) => this.sortBy(name, down) });
    this.player = new Player(this.root, {
      onHot: (step) => this.hot(step),
      onBar: (bar) => this.go(bar),
      onRow: (i) => this.select(i),
      onTime: (time) => this.mark(time),
      hint: HINT,
    });
    this.title = h("p", { class: "lk-query" });
    this.facts = h("p", { class: "lk-facts" });
    this.side = h("div", { class: "lk-side" });
    this.words = h("div", { class: "lk-words", tabindex: "0", role: "group", "aria-label": "what the model wrote" });
    this.tabs = h("div", { class: "lk-tabs", role: "tablist", "aria-label": "view" });
    const id = this.table.id;
    for (const [view, label] of Object.entries(VIEWS)) {
      this.tabs.append(h("button", { type: "button", role: "tab", id: `${id}-${view}`, "aria-controls": `${id}-panel`, "data-tab": view, title: `press ${Object.keys(VIEWS).indexOf(view) + 1}`, onclick: () => this.show(view) }, label));
    }
    const panel = h(
      "div",
      { class: "lk-panel", role: "tabpanel", id: `${id}-panel` },
      h("div", { class: "lk-top" }, this.player.screen, this.side),
      this.player.controls,
      this.player.tracks,
      this.words,
    );
    this.panel = panel;
    this.detail = h("div", { class: "lk-detail" }, h("div", { class: "lk-heading" }, h("div", {}, this.title, this.facts), this.tabs), panel);
    this.root.append(this.toolbar(), ...this.notes(), h("div", { class: "lk-main" }, this.table.frame, this.detail), this.help());
    this.root.addEventListener("keydown", (event) => this.key(event));
    // JupyterLab's commands listen to what is typed in an output, too.
    for (const kind of ["keyup", "keypress"]) this.root.addEventListener(kind, (event) => event.stopPropagation());
    this.el.replaceChildren(this.root);
    this.root.labkit = this;
  }

  toolbar() {
    const changed = (name, read) => (event) => this.setFilter(name, read(event.target.value));
    const choice = (name, label, options) => {
      const select = h("select", { "aria-label": label, "data-filter": name, onchange: changed(name, String) });
      for (const [value, text] of options) select.append(h("option", { value }, harmless(text)));
      return select;
    };
    const names = this.chains.left?.names ?? this.chains.names;
    const named = (column, all) => [["", all], ...names[column].filter(Boolean).map((name) => [name, spaced(name)])];
    const bound = (name, label, empty) =>
      h("input", { type: "number", min: 0, max: 1, step: 0.05, placeholder: empty, "aria-label": label, "data-filter": name, oninput: changed(name, (value) => (value === "" ? NO_FILTER[name] : Number(value))) });
    const regressions = Object.entries(REGRESSIONS).filter(([name]) => name !== "base" || this.chains.compared);
    this.fields = {
      text: h("input", { type: "search", placeholder: "search chains…", "aria-label": "filter by text", "data-filter": "text", class: "lk-search", oninput: changed("text", String) }),
      stage: choice("stage", "stage", named("stage", "all stages")),
      status: choice("status", "how the form was kept", named("status", "any form")),
      kind: choice("kind", "class of failure", named("kind", "any failure")),
      anchors: choice("anchors", "number of anchors", [["", "any anchors"], ["0", "no anchor"], ["1", "1 anchor"], ["2", "2 anchors"], ["3", "3 anchors"], ["4", "4 or more"]]),
      regress: choice("regress", "regressions", [["", "any course"], ...regressions.map(([name, each]) => [name, each.label])]),
      low: bound("low", "lowest IoU", "0"),
      high: bound("high", "highest IoU", "1"),
    };
    this.fields.kind.hidden = !names.kind.some(Boolean);
    this.count = h("span", { class: "lk-count", role: "status" });
    this.lift = h("button", { type: "button", class: "lk-quiet", title: "lift all filters (0)", onclick: () => this.clear() }, "clear");
    const help = h("button", { type: "button", class: "lk-quiet lk-help-button", "aria-label": "keys", title: "keys (?)", onclick: () => this.dialog.showModal() }, "?");
    const { text, low, high, ...choices } = this.fields;
    const range = h("span", { class: "lk-range" }, h("span", { "aria-hidden": "true" }, "IoU"), low, "–", high);
    return h("div", { class: "lk-bar-top", role: "search", "aria-label": "filters" }, text, ...Object.values(choices), range, this.lift, this.count, help);
  }

  /** Grey lines under the filters: chains that did not travel, and what the kernel has to say. */
  notes() {
    const { left } = this.chains;
    const hint = this.host.get("hint");
    const same = this.said();
    const search = h("button", { type: "button", class: "lk-quiet", onclick: () => this.searchAll() }, "");
    this.searchButton = left && this.host.find ? search : null;
    this.leftText = left && h("span", { role: "status" }, harmless(left.text));
    return [
      (left || same.length) && h("p", { class: "lk-notes lk-about" }, ...(same.length ? ["all chains: ", ...same, left ? ". " : ""] : []), this.leftText, this.searchButton),
      hint && h("p", { class: "lk-notes" }, harmless(hint)),
    ].filter(Boolean);
  }

  /** What all chains have in common, which no column repeats. */
  said() {
    const { chains } = this;
    if (chains.count < 2) return [];
    const said = {
      stage: () => h("span", { class: "lk-stage" }, ...stageName(chains.name("stage", 0))),
      step: () => (chains.columns.step[0] ? `step ${chains.columns.step[0]}` : null),
      anchors: () => many(chains.anchors[0], "anchor"),
      total: () => (Number.isNaN(chains.total[0]) ? null : `reward ${number(chains.total[0])}`),
      fault: () => (chains.fault(0) ? spaced(chains.fault(0)) : null),
    };
    const found = Object.entries(said).map(([name, say]) => Table.constant(chains, name) && say()).filter(Boolean);
    return found.flatMap((each, at) => (at ? [" · ", each] : [each]));
  }

  /** Ask the kernel for the chains that pass the filters among all; they come in the place of those that are here. */
  searchAll() {
    this.searchButton.disabled = true;
    this.leftText.textContent = "Asking the kernel …";
    this.host.find(this.filter);
    this.asking = setTimeout(() => {
      this.searchButton.disabled = false;
      this.leftText.textContent = "The kernel has not answered: it does once no cell is running; without one, run the notebook's cells. " + harmless(this.chains.left.text);
    }, PATIENCE);
  }

  help() {
    const rows = KEYS.map(([, shown, text]) => h("tr", {}, h("th", { scope: "row" }, ...shown.split(" ").map((key) => h("kbd", {}, key))), h("td", {}, text)));
    const close = h("button", { type: "button", class: "lk-quiet", onclick: () => this.dialog.close() }, "close");
    this.dialog = h("dialog", { class: "lk-dialog", "aria-label": "keys" }, h("div", { class: "lk-side-title" }, "Keys"), h("table", {}, h("tbody", {}, ...rows)), close);
    this.dialog.addEventListener("close", () => this.root.focus());
    return this.dialog;
  }

  /** What of this explorer is being used: a field's name, its table, or the rest; null while it is not. */
  get used() {
    const active = this.root.getRootNode().activeElement;
    if (!active || !this.root.contains(active)) return null;
    return active.dataset.filter ?? (this.table.node.contains(active) ? "table" : "rest");
  }

  /** Go on as the explorer did whose chains these replace, in a run that still goes on: whoever types goes on typing. */
  adopt(old, used) {
    if (used) {
      const now = this.fields[used] ?? (used === "table" ? this.table.node : this.root);
      now.focus({ preventScroll: true });
      if (used === "text") now.setSelectionRange(old.fields.text.selectionStart, old.fields.text.selectionEnd);
    }
    this.sort = old.sort;
    for (const name of ["status", "anchors", "regress", "low", "high"]) this.filter[name] = old.filter[name];
    this.fill();
    this.refilter();
  }

  /** Take over what Python, or the saved page, says. */
  restore() {
    for (const [name, field] of Object.entries(SHARED)) this.filter[field] = this.host.get(name) ?? "";
    this.fill();
    this.refilter();
    const wanted = this.host.get("selected") ?? -1;
    this.view = this.host.get("view") || "chain";
    this.draw();
    const here = this.chains.at(wanted);
    this.select(here >= 0 && here < this.chains.count ? here : (this.table.view[0] ?? -1));
    this.listeners = [
      ["selected", () => this.select(this.chains.at(this.host.get("selected")))],
      ["view", () => this.view !== this.host.get("view") && this.show(this.host.get("view"))],
      ...Object.entries(SHARED).map(([name, field]) => [name, () => this.filter[field] !== this.host.get(name) && this.setFilter(field, this.host.get(name), true)]),
    ];
    for (const [name, listener] of this.listeners) this.host.on?.(name, listener);
  }

  fill() {
    for (const [name, field] of Object.entries(this.fields)) {
      const value = this.filter[name] === NO_FILTER[name] ? "" : String(this.filter[name]);
      if (field.value !== value) field.value = value;
    }
  }

  setFilter(name, value, told = false) {
    this.filter[name] = value;
    const shared = Object.keys(SHARED).find((each) => SHARED[each] === name);
    if (shared && !told) this.host.set(shared, value);
    if (told) this.fill();
    this.refilter();
  }

  clear() {
    this.filter = { ...NO_FILTER };
    this.fill();
    for (const name of Object.keys(SHARED)) this.host.set(name, "");
    this.refilter();
    this.table.select(this.selected);
  }

  sortBy(name, down = false) {
    this.sort = this.sort.name === name ? { name, down: !this.sort.down } : { name, down: Boolean(down) };
    this.refilter();
  }

  refilter() {
    const view = this.chains.list(this.filter, this.sort);
    this.table.node.scrollTop = 0;
    this.table.set(view, this.sort);
    const all = (this.chains.left?.all ?? this.chains.count).toLocaleString("en");
    const whole = !this.chains.left && view.length === this.chains.count;
    this.count.textContent = whole ? many(view.length, "chain") : `${view.length.toLocaleString("en")} of ${all}`;
    this.lift.disabled = Object.keys(NO_FILTER).every((name) => this.filter[name] === NO_FILTER[name]);
    this.root.dataset.count = view.length;
    if (!this.searchButton) return;
    this.searchButton.hidden = this.lift.disabled && !this.chains.left.found;
    this.searchButton.textContent = this.lift.disabled ? `a share of all ${all} again` : `search all ${all}`;
  }

  pick(i) {
    this.table.node.focus({ preventScroll: true });
    this.select(i, false);
  }

  select(i, reveal = true) {
    if (i === this.selected) return;
    if (!(i >= 0 && i < this.chains.count)) return;
    const before = this.selected >= 0 ? this.chains.moment(this.selected) : null;
    this.selected = i;
    this.step = null;
    const place = this.chains.place(i);
    this.root.dataset.chain = place;
    if (this.host.get("selected") !== place) this.host.set("selected", place);
    this.host.onSelect?.(place);
    this.table.select(i, reveal);
    const moment = this.chains.moment(i);
    // One chain's siblings ask about the same clip: the frame that is looked at stays.
    if (!before || before.clip !== moment.clip || before.duration !== moment.duration) {
      this.player.time = 0;
      this.player.load(this.clips.get(moment.clip), { ...moment, waiting: this.waiting() });
    }
    this.draw();
    if (!before || before !== moment) this.player.setTime(steps(this.chains, i).at(-1)?.at[0] ?? moment.windows[0][0]);
  }

  waiting() {
    const held = many(Object.keys(this.clips.stored).length, "clip");
    return `These frames are not stored here, and the kernel was asked for them. It answers once no cell is running; without a kernel, only ${held} can be seen.`;
  }

  show(view) {
    if (!(view in VIEWS) || view === this.view) return;
    this.view = view;
    if (this.host.get("view") !== view) this.host.set("view", view);
    this.draw();
  }

  draw() {
    const i = this.selected;
    this.root.dataset.view = this.view;
    for (const tab of this.tabs.children) {
      const on = tab.dataset.tab === this.view;
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
    }
    this.panel.setAttribute("aria-labelledby", `${this.table.id}-${this.view}`);
    this.detail.hidden = i < 0;
    if (i < 0) return;
    this.heading(i);
    const draw = { chain: () => this.drawChain(i), group: () => this.drawGroup(i), stages: () => this.drawStages(i) };
    draw[this.view]();
    this.panel.scrollTop = 0;
    this.mark(this.player.time);
  }

  heading(i) {
    const { chains } = this;
    const moment = chains.moment(i);
    const { step, sample, completion_tokens: tokens } = chains.columns;
    this.title.replaceChildren(`“${harmless(moment.query)}”`);
    const facts = [harmless(moment.qid), harmless(moment.video)];
    const numbered = chains.name("stage", i) === "distill" ? "part" : "step";
    if (step[i]) facts.push(`${numbered} ${step[i]}, sample ${sample[i]}`);
    if (tokens[i] !== null) facts.push(`${tokens[i]} tokens`);
    const fault = chains.fault(i);
    const badge = fault ? h("span", { class: "lk-badge", title: this.chains.meaning(i) }, spaced(fault)) : null;
    this.facts.replaceChildren(h("span", { class: "lk-stage" }, ...stageName(chains.name("stage", i))), ...facts.map((fact) => h("span", {}, fact)), ...(badge ? [badge] : []));
    if (moment.options) this.facts.append(this.options(i, moment));
  }

  options(i, moment) {
    const chosen = this.chains.columns.option[i];
    const list = moment.options.map((option, k) =>
      h("span", { class: k === moment.choice ? "lk-option lk-true" : "lk-option" }, `${letter(k)} ${harmless(option)}${k === chosen ? " (chosen)" : ""}${k === moment.choice ? " ✓" : ""}`),
    );
    return h("span", { class: "lk-options" }, ...list);
  }

  get live() {
    return { onHot: (step) => this.hot(step), onBar: (bar) => this.go(bar), onPlay: (range) => this.player.play(range) };
  }

  drawChain(i) {
    const moment = this.chains.moment(i);
    this.player.setRows(chainRows(this.chains, i), moment.windows, true);
    this.side.replaceChildren(...ledger(this.chains, i));
    this.words.replaceChildren(h("p", { class: "lk-thought" }, ...thought(this.chains, i, { live: this.live })));
  }

  drawGroup(i) {
    const { chains } = this;
    const moment = chains.moment(i);
    const order = ranked(chains, i);
    const rows = order.map((each, k) =>
      thinRow(chains, each, [`${k + 1}`, h("small", {}, `#${chains.columns.sample[each]}`)], [h("b", {}, number(chains.total[each])), ` ${number(chains.iou[each])}`], each === i, `rank ${k + 1}, sample ${chains.columns.sample[each]}: reward ${number(chains.total[each])}, IoU ${number(chains.iou[each])}`),
    );
    const truth = { ...truthRow(moment), end: [h("small", {}, "reward IoU")] };
    this.player.setRows([truth, ...rows], moment.windows);
    this.side.replaceChildren(...groupPanel(chains, i));
    const best = order[0];
    const { text } = chains.columns;
    const saying = (label, each, same) => h("p", { class: "lk-thought" }, h("b", { class: "lk-saying" }, label), ...thought(chains, each, { same, live: each === i ? this.live : null }));
    this.words.replaceChildren(
      saying("best", best, 0),
      ...(best === i ? [] : [saying(`rank ${order.indexOf(i) + 1}`, i, commonStart(text[best], text[i]))]),
      ...(order.length > 1 && order.at(-1) !== i ? [saying("worst", order.at(-1), commonStart(text[best], text[order.at(-1)]))] : []),
    );
  }

  drawStages(i) {
    const { chains } = this;
    const moment = chains.moment(i);
    const found = throughStages(chains, i);
    const rows = found.map(({ stage, shown }) =>
      thinRow(chains, shown, stageName(stage), [`IoU ${number(chains.iou[shown])}`], shown === i, `${harmless(stage)}, step ${chains.columns.step[shown]}, sample ${chains.columns.sample[shown]}`),
    );
    this.player.setRows([truthRow(moment), ...rows], moment.windows);
    this.side.replaceChildren(...stagesPanel(chains, i));
    this.words.replaceChildren(
      ...found.map(({ stage, shown }) => h("p", { class: "lk-thought" }, h("b", { class: "lk-saying" }, ...stageName(stage)), ...thought(chains, shown, { live: shown === i ? this.live : null }))),
    );
  }

  hot(step) {
    this.player.setHot(step);
    for (const node of this.detail.querySelectorAll("[data-step]")) {
      node.classList.toggle("lk-hot", step !== null && node.dataset.step === String(step));
    }
  }

  /** Chips whose span holds the time are underlined. */
  mark(time) {
    if (this.selected < 0) return;
    const { anchors, answer } = this.chains.columns;
    for (const node of this.words.querySelectorAll("button[data-step]")) {
      const at = anchors[this.selected][node.dataset.step] ?? answer[this.selected];
      node.classList.toggle("lk-now", Boolean(at) && time >= at[0] && time < at[1]);
    }
  }

  go(bar) {
    this.player.stop();
    this.step = bar.step;
    this.player.setTime(bar.span[0]);
  }

  /** Go to the next or previous anchor, the answer being the last. */
  walk(by) {
    const all = steps(this.chains, this.selected);
    if (!all.length) return;
    const from = typeof this.step === "number" ? this.step : by > 0 ? -1 : all.length;
    const next = all[(from + by + all.length) % all.length];
    this.go({ span: next.at.slice(0, 2), step: next.step });
    this.hot(next.step);
    this.player.setTime(next.at[0]);
  }

  playStep() {
    const all = steps(this.chains, this.selected);
    const chosen = all.find((each) => each.step === this.step) ?? all.at(-1);
    this.player.play(this.step === "truth" || !chosen ? this.chains.moment(this.selected).windows[0] : chosen.at.slice(0, 2));
  }

  truth() {
    this.go({ span: this.chains.moment(this.selected).windows[0], step: "truth" });
  }

  answer() {
    const answer = this.chains.columns.answer[this.selected];
    if (answer) this.go({ span: answer.slice(0, 2), step: this.chains.columns.anchors[this.selected].length });
  }

  move(by) {
    const { view } = this.table;
    if (!view.length) return;
    const at = view.indexOf(this.selected);
    this.select(view[at < 0 ? 0 : clamp(at + by, 0, view.length - 1)]);
  }

  nextSort() {
    const names = this.table.columns.map((column) => column.name);
    const column = this.table.columns[(names.indexOf(this.sort.name) + 1) % names.length];
    this.sortBy(column.name, column.down);
  }

  key(event) {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || this.dialog.open) return;
    const typing = event.target.matches("input, select");
    if (typing) {
      if (event.key === "Escape") this.table.node.focus();
      return;
    }
    if (event.target.matches("button") && [" ", "Enter"].includes(event.key)) return;
    // A long thought is read with the keys that scroll.
    if (event.target === this.words && /^(Arrow(Up|Down)|Page(Up|Down))$/.test(event.key)) return;
    const found = KEYS.find(([keys]) => keys.includes(event.key));
    if (!found || (this.selected < 0 && !["/", "?", "0"].includes(event.key))) return;
    event.preventDefault();
    found[3](this, event);
  }

  close() {
    for (const [name, listener] of this.listeners) this.host.off?.(name, listener);
    clearTimeout(this.ahead);
    clearTimeout(this.asking);
    this.player.close();
    this.table.close();
    this.clips.close();
    this.el.replaceChildren();
  }
}

/** Every key: what the browser calls it, how it is shown, what it does. */
const KEYS = [
  [["ArrowDown", "j"], "↓ j", "next chain", (x) => x.move(1)],
  [["ArrowUp", "k"], "↑ k", "chain before", (x) => x.move(-1)],
  [["PageDown"], "PgDn", "ten chains on", (x) => x.move(10)],
  [["PageUp"], "PgUp", "ten chains back", (x) => x.move(-10)],
  [["ArrowRight"], "→", "one frame on; with Shift five", (x, event) => x.player.step(event.shiftKey ? 5 : 1)],
  [["ArrowLeft"], "←", "one frame back; with Shift five", (x, event) => x.player.step(event.shiftKey ? -5 : -1)],
  [["Home"], "Home", "start of the clip", (x) => x.player.setTime(0)],
  [["End"], "End", "end of the clip", (x) => x.player.setTime(x.player.duration)],
  [[" "], "Space", "play or pause", (x) => x.player.toggle()],
  [["<"], "<", "play slower", (x) => x.player.faster(-1)],
  [[">"], ">", "play faster", (x) => x.player.faster(1)],
  [["]"], "]", "next anchor, then the answer", (x) => x.walk(1)],
  [["["], "[", "anchor before", (x) => x.walk(-1)],
  [["Enter"], "Enter", "play the anchor, the answer or the truth", (x) => x.playStep()],
  [["a"], "a", "go to the answer", (x) => x.answer()],
  [["t"], "t", "go to the truth", (x) => x.truth()],
  [["1"], "1", "view: chain", (x) => x.show("chain")],
  [["2"], "2", "view: group, all chains of this prompt", (x) => x.show("group")],
  [["3"], "3", "view: this query through the stages", (x) => x.show("stages")],
  [["/"], "/", "type a filter; Esc leaves it", (x) => x.fields.text.focus()],
  [["0"], "0", "lift all filters", (x) => x.clear()],
  [["s"], "s", "sort by the next column", (x) => x.nextSort()],
  [["r"], "r", "reverse the order", (x) => x.sortBy(x.sort.name)],
  [["?"], "?", "these keys", (x) => x.dialog.showModal()],
];

// ---------------------------------------------------------------- scrubber

const SCRUB_KEYS = KEYS.filter(([keys]) => [" ", "ArrowRight", "ArrowLeft", "Home", "End", "<", ">"].includes(keys[0]));

class Scrubber {
  constructor(el, { told, clips }, host) {
    Object.assign(this, { el, host, clips, told });
    this.root = h("section", { class: "lk lk-scrubber", "aria-label": `video ${harmless(told.name)}`, tabindex: "-1", "data-lm-suppress-shortcuts": "true", "data-view": "scrubber" });
    this.player = new Player(this.root, {
      onHot: (step) => this.player.setHot(step),
      onBar: (bar) => (this.player.stop(), this.player.setTime(bar.span[0])),
      onTime: (time) => this.tell(time),
      hint: SCRUB_HINT,
    });
    const { screen, controls, tracks } = this.player;
    this.root.append(h("p", { class: "lk-query" }, harmless(told.name)), screen, controls, tracks);
    this.root.addEventListener("keydown", (event) => this.key(event));
    for (const kind of ["keyup", "keypress"]) this.root.addEventListener(kind, (event) => event.stopPropagation());
    el.replaceChildren(this.root);
    this.root.labkit = this;
    this.player.load(clips.get(0), { duration: told.duration });
    this.player.setRows(told.rows.map((row, at) => this.row(row, at)), told.rows.filter((row) => row.label === "truth").flatMap((row) => row.spans));
    this.player.setTime(host.get("time") ?? 0);
    this.listener = () => Math.abs(this.player.time - host.get("time")) > EPSILON && this.player.setTime(host.get("time"));
    host.on?.("time", this.listener);
  }

  row(row, at) {
    const bars = row.spans.map((each, k) => ({ span: each, look: LOOKS[row.label] ?? "anchor", name: harmless(row.label), step: `${at}.${k}` }));
    return { label: [harmless(row.label)], truth: row.label === "truth", bars, end: [row.spans.length === 1 ? times(row.spans[0]) : `${row.spans.length} spans`] };
  }

  /** Python hears of the time at most ten times a second. */
  tell(time) {
    this.said = time;
    this.telling ??= setTimeout(() => {
      this.telling = null;
      if (this.host.get("time") !== this.said) this.host.set("time", this.said);
    }, 100);
  }

  key(event) {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    if (event.target.matches("button") && [" ", "Enter"].includes(event.key)) return;
    const found = SCRUB_KEYS.find(([keys]) => keys.includes(event.key));
    if (!found) return;
    event.preventDefault();
    found[3](this, event);
  }

  close() {
    clearTimeout(this.telling);
    this.host.off?.("time", this.listener);
    this.player.close();
    this.clips.close();
    this.el.replaceChildren();
  }
}

// ---------------------------------------------------------------- ways in

/**
 * Draw the explorer into an element.
 * @param {{page: object, clips: Clips, height?: number}} source the unpacked columns, and clips by key
 * @param {{get: (name: string) => any, set: (name: string, value: any) => void, on?: Function, off?: Function, onSelect?: (i: number) => void}} host
 */
export const mount = (el, source, host) => new Explorer(el, source, host);

/** Draw the scrubber into an element. */
export const mountScrubber = (el, source, host) => new Scrubber(el, source, host);

function mountAny(el, page, host, ask) {
  const sheets = host.get("sheets") ?? {};
  const held = Object.entries(host.get("clips")).map(([key, clip]) => [key, sheets[key] ? { ...clip, sheet: sheets[key] } : clip]);
  const clips = new Clips(Object.fromEntries(held), ask);
  if (host.get("shows") === "scrubber") return mountScrubber(el, { told: page, clips }, host);
  return mount(el, { page, clips, height: host.get("height") }, host);
}

/** A notebook's saved widget state, its buffers put back in their places. */
function withBuffers({ state, buffers = [] }) {
  const whole = structuredClone(state);
  for (const { path, data } of buffers) {
    const holder = path.slice(0, -1).reduce((at, name) => at?.[name], whole);
    if (holder) holder[path.at(-1)] = data; // else bytes of a state that came before this one
  }
  return whole;
}

/**
 * Draw a saved widget where there is no kernel.
 * @param entry the state with bytes as base64, or a notebook's `{state, buffers: [{path, data}]}`
 */
export async function mountFromState(el, entry) {
  const state = { ...(entry.state ? withBuffers(entry) : entry) };
  const host = { get: (name) => state[name], set: (name, value) => (state[name] = value) };
  return mountAny(el, await inflate(state.data), host, null);
}

/** Bring every saved widget of a page to life: elements with `data-labkit` that hold their state as JSON. */
export async function mountAll(page = document) {
  const places = [...page.querySelectorAll("[data-labkit]:not([data-labkit=mounted])")];
  for (const place of places) {
    const state = JSON.parse(place.querySelector('script[type="application/json"]').textContent);
    place.dataset.labkit = "mounted";
    const el = h("div");
    place.replaceChildren(el);
    await mountFromState(el, state);
  }
}

/** anywidget's entry: the same, with a kernel that may be asked. */
async function render({ model, el }) {
  const waiting = new Map();
  const answered = (message, buffers) => {
    const resolve = waiting.get(message?.clip);
    if (!resolve) return;
    waiting.delete(message.clip);
    const { clip: _, ...clip } = message;
    resolve(buffers?.length ? { ...clip, sheet: buffers[0] } : clip);
  };
  const ask = (key) =>
    new Promise((resolve) => {
      waiting.set(key, resolve);
      try {
        model.send({ ask: "clip", key });
      } catch {
        // Without a kernel nobody answers, and after a while the page says so.
      }
    });
  const host = {
    get: (name) => model.get(name),
    find: (filters) => {
      try {
        model.send({ ask: "chains", filters });
      } catch {
        // Nobody is there to ask: after a while the page says so.
      }
    },
    set: (name, value) => {
      model.set(name, value);
      try {
        model.save_changes();
      } catch {
        // A saved page may be looked at and changed where there is nobody to tell.
      }
    },
    on: (name, listener) => model.on(`change:${name}`, listener),
    off: (name, listener) => model.off(`change:${name}`, listener),
  };
  model.on("msg:custom", answered);
  let shown = null;
  let latest = 0;
  const draw = async () => {
    const mine = ++latest;
    const next = h("div");
    const page = await inflate(host.get("data"));
    if (mine !== latest) return;
    const used = shown instanceof Explorer ? shown.used : null;
    el.replaceChildren(next);
    const made = mountAny(next, page, host, ask);
    if (shown instanceof Explorer) made.adopt(shown, used);
    shown?.close();
    shown = made;
  };
  model.on("change:data", draw);
  await draw();
  return () => {
    latest++;
    model.off("change:data", draw);
    model.off("msg:custom", answered);
    shown?.close();
  };
}

export default { render };
