/** The video player: frame, scrub bar and the tracks of spans under it. */

import { clamp, clock, EPSILON, h, safeText, number, percent, span, svg, tickStep } from "./core.js";
import { Film } from "./film.js";

const SPEEDS = [0.5, 1, 2, 4];
// Milliseconds until a note says what is being waited for.
export const NOTE_DELAY = 3000;

/**
 * A bar of the tracks.
 * @typedef {{span: number[], look: string, name: string, step?: number, iou?: number, note?: string, lane?: number}} Bar
 * A row of the tracks: a label, its bars, and what stands at its end. `thin` stacks the bars.
 * @typedef {{label: (Node|string)[], bars: Bar[], end?: string, thin?: boolean, chain?: number, title?: string}} TrackRow
 */

/** Which spans of two steps are joined by a shade: each to its own where there are as many, else the whole of both. */
function funnels(above, below) {
  if (above.length === below.length) return above.map((span, k) => [span, below[k]]);
  return above.length && below.length ? [[above, below].map((step) => [step[0][0], step.at(-1)[1]])] : [];
}

/** The frame, the scrub bar and the tracks under it: one clip, one time, any rows of bars. */
export class Player {
  constructor(root, { onTime, onHot, onBar, onRow = () => {}, hint }) {
    Object.assign(this, { root, onTime, onHot, onBar, onRow });
    this.time = 0;
    this.duration = 1;
    this.clip = null;
    this.shown = -1;
    this.speed = 1;
    this.wanted = null;
    this.film = new Film(root, { onReady: (aspect) => this.filmReady(aspect), onOther: () => this.stop() });
    this.build(hint);
  }

  build(hint) {
    this.canvas = h("canvas", { class: "lk-canvas", role: "img", "aria-label": "frame of the video" });
    this.note = h("p", { class: "lk-note", role: "status" });
    this.screen = h("div", { class: "lk-screen" }, this.canvas, this.film.video, this.note);
    this.button = h("button", { type: "button", class: "lk-play", "aria-label": "play", title: "play or pause (space)", onclick: () => this.toggle() });
    this.playing = null;
    this.face();
    this.clockText = h("span", { class: "lk-clock" });
    this.select = h("select", { "aria-label": "speed", class: "lk-speed", onchange: () => this.setSpeed(Number(this.select.value)) });
    for (const speed of SPEEDS) this.select.append(h("option", { value: speed, selected: speed === 1 }, `${speed}×`));
    this.hint = h("span", { class: "lk-hint", "aria-hidden": "true" }, ...hint.map(([key, text]) => h("span", {}, h("kbd", {}, key), `${text} `)));
    this.controls = h("div", { class: "lk-controls" }, this.button, this.clockText, this.select, this.film.mute, this.hint);

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

  /** Show a clip: rows and times at once, its frames when they are there, and its video, see `Film.load`, where that is. */
  async load(promise, { duration, waiting = "", film }) {
    this.stop();
    this.film.load(film);
    this.duration = duration;
    this.clip = null;
    this.shown = -1;
    this.canvas.hidden = true;
    this.slider.setAttribute("aria-valuemin", 0);
    this.slider.setAttribute("aria-valuemax", duration.toFixed(1));
    this.drawAxis();
    this.drawStrip();
    this.setMedia("loading", "");
    this.wanted = promise;
    const timer = setTimeout(() => this.wanted === promise && this.shared !== promise && this.setMedia("loading", waiting), NOTE_DELAY);
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
      this.setMedia("ready", "");
    } catch (error) {
      if (this.wanted === promise) this.setMedia(error.name === "Error" ? "none" : "error", error.message);
    } finally {
      clearTimeout(timer);
    }
  }

  /** The video is there: it goes on where the sheet is. */
  filmReady(aspect) {
    if (!this.clip) this.screen.style.setProperty("--aspect", aspect);
    if (this.playing) this.film.play(this.time, this.speed);
    else this.film.seek(this.time);
  }

  /** How far the frames are that were promised. */
  setShare(promise, share) {
    if (this.wanted !== promise || this.clip) return;
    this.shared = promise;
    this.setMedia("loading", `The pictures are being made: ${Math.round(100 * share)} %`);
    this.note.append(h("progress", { max: 1, value: share, "aria-label": "pictures made" }));
  }

  /** What is known of the frames: loading, ready, none or error, with a text in their place. */
  setMedia(state, text) {
    this.root.dataset.media = state;
    this.note.textContent = safeText(text);
    this.note.hidden = !text;
  }

  setTime(time) {
    this.time = time = clamp(time, 0, this.duration);
    this.head.style.left = percent(time / this.duration);
    this.clockText.textContent = `${clock(time)} / ${clock(this.duration)}`;
    this.slider.setAttribute("aria-valuenow", time.toFixed(2));
    this.slider.setAttribute("aria-valuetext", clock(time));
    this.drawFrame(time);
    if (!this.playing) this.film.seek(time);
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
    track.append(...row.bars.flatMap((bar) => this.bar(bar, row)));
    if (row.thin && !track.children.length) track.append(h("span", { class: "lk-outside" }, row.bars.length ? "outside the video" : "no span was read"));
    const label = row.chain === undefined
      ? h("span", { class: "lk-label" }, ...row.label)
      : h("button", { type: "button", class: "lk-label lk-pick", title: row.title, onclick: () => this.onRow(row.chain) }, ...row.label);
    const kept = ["lk-track-row", row.thin && "lk-thin-row", row.on && "lk-on", row.truth && "lk-truth-row"].filter(Boolean);
    const node = h("div", { class: kept.join(" "), "data-row-chain": row.chain }, label, track, h("span", { class: "lk-end" }, ...(row.end ?? [])));
    if (row.thin) node.style.setProperty("--bars", Math.max(3, ...row.bars.map((bar) => bar.lane + 1)));
    return node;
  }

  bar(bar, row) {
    const [start, end] = bar.span;
    const name = `${bar.name}: ${span(bar.span)}${bar.iou === undefined ? "" : `, IoU ${number(bar.iou)}`}`;
    if (end <= 0 || start >= this.duration) {
      return row.thin ? [] : [h("span", { class: "lk-outside" }, `${span(bar.span)}: outside the video`)];
    }
    if (row.thin) {
      const thin = h("div", { class: `lk-bar lk-${bar.look}`, title: name });
      thin.style.setProperty("--at", bar.lane);
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
    else {
      note.style.right = percent(1 - behind);
      note.classList.add("lk-inside");
    }
    return [node, note];
  }

  drawFunnel(rows) {
    const steps = rows.filter((row) => !row.truth).map((row) => row.bars.map((bar) => bar.span));
    const first = rows.findIndex((row) => !row.truth);
    const height = 28;
    this.funnel.setAttribute("viewBox", `0 0 1000 ${Math.max(1, rows.length * height)}`);
    const at = (time) => ((1000 * clamp(time, 0, this.duration)) / this.duration).toFixed(1);
    const shades = [];
    for (let k = 0; k + 1 < steps.length; k++) {
      const [top, bottom] = [(first + k + 1) * height - 5, (first + k + 1) * height + 5];
      for (const [a, b] of funnels(steps[k], steps[k + 1])) {
        if (Math.min(a[1], this.duration) <= a[0] || Math.min(b[1], this.duration) <= b[0]) continue;
        shades.push(svg("polygon", { points: `${at(a[0])},${top} ${at(a[1])},${top} ${at(b[1])},${bottom} ${at(b[0])},${bottom}` }));
      }
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
    const time = bar ? clamp((bar.span[0] + bar.span[1]) / 2, 0, this.duration) : this.time;
    this.drawFrame(time);
    this.film.seek(time);
  }

  play(range = null) {
    this.stop();
    const [from, to] = range ?? [this.time >= this.duration - 0.05 ? 0 : this.time, this.duration];
    const end = Math.min(to, this.duration);
    let time = from;
    let before = null;
    this.setTime(time);
    const tick = (now) => {
      const past = before === null ? 0 : ((now - before) / 1000) * this.speed;
      time = this.film.rolls ? Math.max(time, this.film.now) : time + past;
      before = now;
      this.setTime(Math.min(time, end));
      if (time >= end) this.stop();
      else this.playing = requestAnimationFrame(tick);
    };
    this.playing = requestAnimationFrame(tick);
    this.film.play(time, this.speed);
    this.face();
  }

  stop() {
    if (this.playing) {
      cancelAnimationFrame(this.playing);
      this.film.pause();
      this.film.seek(this.time);
    }
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

  setSpeed(speed) {
    this.speed = this.film.video.playbackRate = speed;
  }

  faster(by) {
    this.setSpeed(SPEEDS[clamp(SPEEDS.indexOf(this.speed) + by, 0, SPEEDS.length - 1)]);
    this.select.value = this.speed;
  }

  step(frames) {
    this.stop();
    const step = this.clip?.step ?? 0.5;
    this.setTime((Math.floor(this.time / step + 1e-4) + frames) * step);
  }

  close() {
    this.stop();
    this.film.close();
    this.resized.disconnect();
  }
}
