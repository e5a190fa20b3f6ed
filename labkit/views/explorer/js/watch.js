/** Watch a query learn: the video's timeline across, training downwards, each row the chain of one step. */

import { clamp, h, safeText, number, svg } from "./core.js";
import { Chains } from "./chains.js";
import { stageName } from "./stages.js";
import { Player } from "./player.js";
import { chainText, thinRow } from "./chain.js";

const WATCH_HINT = [["space", "play"], ["↑", ""], ["↓", "steps"]];
const MANY = 40; // rows, from which on they are less high
const BEAT = 480; // milliseconds of a step when it is played
const STEP_KEYS = { ArrowDown: 1, ArrowRight: 1, j: 1, ArrowUp: -1, ArrowLeft: -1, k: -1, PageDown: 5, PageUp: -5, Home: -1e6, End: 1e6 };
const TRAINED_WORDS = { grpo: "stage 1: GRPO", grpo_final: "stage 3: GRPO" };
const FRESH = "stage 2: a fresh base learns by SFT from chains that stage 1 sampled";
// Of the column at the right edge, in pixels: where an IoU of 0 and of 1 lie.
const [ZERO, ONE, EDGE] = [14, 78, 122];

/** How much of the anchors' colour the k-th has: the first is the lightest, whatever chain it stands in. */
const shade = (k) => `${[38, 68, 100, 100][Math.min(k, 3)]}%`;

export class Watch {
  constructor(el, { page, clips }, host) {
    Object.assign(this, { el, host, clips, selected: -1, lines: [], playing: null });
    this.chains = new Chains(page);
    this.build();
    const wanted = this.chains.localIndex(host.get("selected") ?? -1);
    this.select(wanted >= 0 && wanted < this.chains.count ? wanted : 0);
    this.listener = () => this.select(this.chains.localIndex(host.get("selected")));
    host.on?.("selected", this.listener);
  }

  build() {
    const { chains } = this;
    this.root = h("section", { class: "lk lk-watch", "aria-label": "watch a query learn", tabindex: "-1", "data-lm-suppress-shortcuts": "true", "data-view": "watch" });
    this.player = new Player(this.root, {
      onHot: (step) => this.hot(step),
      onBar: () => {},
      onRow: (i) => this.stopAt(i),
      onTime: () => {},
      hint: WATCH_HINT,
    });
    this.clips.onShare = (promise, share) => this.player.setShare(promise, share);
    this.title = h("p", { class: "lk-query" });
    this.facts = h("p", { class: "lk-facts" });
    this.choice = h("select", { class: "lk-watch-choice", "aria-label": "query", onchange: () => this.stopAt(this.learnt(Number(this.choice.value)).at(-1)) });
    const gains = chains.moments.map((moment, at) => {
      const line = this.learnt(at);
      return { at, moment, from: chains.iou[line[0]], to: chains.iou[line.at(-1)] };
    });
    for (const { at, moment, from, to } of gains.sort((a, b) => b.to - b.from - (a.to - a.from))) {
      this.choice.append(h("option", { value: at }, `IoU ${number(from)} → ${number(to)}  ${safeText(moment.query)}`));
    }
    const { button, hint } = this.player;
    button.onclick = null;
    this.button = button.cloneNode(true);
    this.button.addEventListener("click", () => this.toggle());
    this.range = h("input", { type: "range", min: 0, step: 1, class: "lk-watch-range", "aria-label": "step of training", oninput: () => this.stopAt(this.lines[Number(this.range.value)]) });
    this.where = h("span", { class: "lk-watch-where", role: "status" });
    this.words = h("div", { class: "lk-words", tabindex: "0", role: "group", "aria-label": "what the model wrote" });
    this.edge = svg("svg", { class: "lk-watch-edge", "aria-hidden": "true" });
    this.legend = h("p", { class: "lk-watch-legend", "aria-hidden": "true" });
    this.player.tracks.append(this.edge);
    this.root.append(
      h("div", { class: "lk-watch-head" }, h("div", {}, this.title, this.facts), this.choice),
      ...(chains.left?.text ? [h("p", { class: "lk-notes" }, safeText(chains.left.text))] : []),
      h("div", { class: "lk-controls" }, this.button, this.range, this.where, this.player.film.mute, hint),
      this.legend,
      this.player.tracks,
      h("div", { class: "lk-watch-foot" }, this.player.screen, this.words),
    );
    this.root.addEventListener("keydown", (event) => this.key(event));
    for (const kind of ["keyup", "keypress"]) this.root.addEventListener(kind, (event) => event.stopPropagation());
    this.el.replaceChildren(this.root);
    this.root.labkit = this;
    // What is drawn while its notebook is hidden has no size yet.
    this.resized = new ResizeObserver(() => {
      if (this.selected < 0) return;
      this.drawEdge();
      this.light(this.lines.indexOf(this.selected));
    });
    this.resized.observe(this.player.rows);
  }

  /** The chains of a query as it learnt: by stage and step, of each step the first sample. */
  learnt(moment) {
    const { stage, step, sample } = this.chains.columns;
    const all = [...this.chains.byMoment.get(moment)].sort((a, b) => stage[a] - stage[b] || step[a] - step[b] || sample[a] - sample[b]);
    return all.filter((i, at) => at === 0 || stage[i] !== stage[all[at - 1]] || step[i] !== step[all[at - 1]]);
  }

  /** Show a chain, and its query where another one was shown. */
  select(i) {
    if (i === this.selected || !(i >= 0 && i < this.chains.count)) return;
    const before = this.selected < 0 ? null : this.chains.columns.moment[this.selected];
    const moment = this.chains.columns.moment[i];
    if (before !== moment) this.open(moment);
    const at = this.lines.indexOf(i);
    this.selected = i = this.lines[at < 0 ? this.lines.length - 1 : at];
    const place = this.chains.globalIndex(i);
    this.root.dataset.chain = place;
    if (this.host.get("selected") !== place) this.host.set("selected", place);
    this.show(this.lines.indexOf(i));
  }

  open(at) {
    const { chains } = this;
    const moment = chains.moments[at];
    this.lines = this.learnt(at);
    this.choice.value = at;
    this.range.max = this.lines.length - 1;
    if (this.lines.length > MANY) this.root.style.setProperty("--step", "14px");
    else this.root.style.removeProperty("--step");
    this.title.replaceChildren(`“${safeText(moment.query)}”`);
    this.facts.replaceChildren(...[moment.qid, moment.video].map((fact) => h("span", {}, safeText(fact))));
    const most = Math.min(4, Math.max(0, ...this.lines.map((i) => chains.anchors[i])));
    const shades = Array.from({ length: most }, (_, k) => [`anchor ${k + 1}`, "anchor", shade(k)]);
    this.legend.replaceChildren(
      ...[["truth", "truth"], ...shades, ["answer", "answer"]].map(([name, look, share]) => {
        const mark = h("i", { class: `lk-bar lk-${look}` });
        if (share) mark.style.setProperty("--shade", share);
        return h("span", {}, mark, name);
      }),
      h("span", { class: "lk-watch-scale" }, "IoU of the answer"),
    );
    const rows = [];
    this.heads = new Map();
    let stage = null;
    for (const i of this.lines) {
      const name = chains.name("stage", i);
      if (name !== stage) {
        if (name === "grpo_final" && stage !== null) {
          this.heads.set(rows.length, [stageName("sft").at(0), FRESH]);
          rows.push({ label: [], bars: [] });
        }
        this.heads.set(rows.length, [stageName(name).at(0), TRAINED_WORDS[name] ?? safeText(name)]);
        rows.push({ label: [], bars: [] });
        stage = name;
      }
      const row = thinRow(chains, i, [`step ${chains.columns.step[i]}`], [], false, this.said(i));
      for (const bar of row.bars) if (bar.look === "anchor") bar.shade = shade(bar.lane);
      rows.push({ ...row, place: i });
    }
    this.player.load(this.clips.get(moment.clip), { ...moment, waiting: this.clips.waiting, film: (whole) => this.clips.film(moment.clip, whole) });
    this.player.setRows(rows, moment.windows);
    this.nodes = new Map();
    [...this.player.rows.children].forEach((node, at) => {
      const head = this.heads.get(at);
      if (head) {
        node.classList.add("lk-watch-stage");
        node.replaceChildren(h("span", {}, ...head));
        return;
      }
      const i = rows[at].place;
      this.nodes.set(i, node);
      node.addEventListener("pointerenter", () => this.say(i));
      node.addEventListener("pointerleave", () => this.say(this.selected));
      node.addEventListener("click", () => this.stopAt(i));
    });
    this.player.setTime(moment.windows[0]?.[0] ?? 0);
    this.drawEdge();
  }

  said(i) {
    const name = this.chains.name("stage", i);
    return `${TRAINED_WORDS[name] ?? safeText(name)}, after ${this.chains.columns.step[i]} steps: IoU ${number(this.chains.iou[i])}`;
  }

  /** The IoU of each row's answer, as a line that runs downwards at the right edge. */
  drawEdge() {
    const top = this.player.rows.offsetTop;
    const at = (iou) => ZERO + (ONE - ZERO) * iou;
    const height = this.player.rows.offsetHeight;
    this.edge.setAttribute("viewBox", `0 0 ${EDGE} ${Math.max(1, height)}`);
    this.edge.style.cssText = `top:${top}px;height:${height}px;width:${EDGE}px`;
    const grid = [0, 0.5, 1].map((iou) => svg("path", { d: `M${at(iou)} 0V${height}`, class: "lk-edge-grid" }));
    this.dots = new Map();
    this.points = [];
    for (const i of this.lines) {
      const node = this.nodes.get(i);
      this.dots.set(i, []);
      if (Number.isNaN(this.chains.iou[i])) continue; // nobody has told the truth
      const y = node.offsetTop + node.offsetHeight / 2;
      const x = at(this.chains.iou[i]);
      this.points.push([i, `${x.toFixed(1)} ${y}`]);
      const value = svg("text", { x: EDGE, y: y + 4, "text-anchor": "end" });
      value.textContent = number(this.chains.iou[i]);
      this.dots.set(i, [svg("circle", { cx: x, cy: y, r: 3 }), value]);
    }
    this.reached = svg("path", { class: "lk-edge-line" });
    const ends = [0, 1].map((iou) => {
      const text = svg("text", { x: at(iou), y: height + 15, "text-anchor": "middle", class: "lk-edge-end" });
      text.textContent = iou;
      return text;
    });
    this.edge.replaceChildren(...grid, ...ends, svg("path", { d: this.edgePath(this.lines.length), class: "lk-edge-line lk-later" }), this.reached, ...[...this.dots.values()].flat());
  }

  /** The line through the first `count` rows, broken where another stage begins. */
  edgePath(count) {
    const { stage } = this.chains.columns;
    const here = this.points.filter(([i]) => this.lines.indexOf(i) < count);
    return here.map(([i, place], k) => (k && stage[i] === stage[here[k - 1][0]] ? "L" : "M") + place).join("");
  }

  /** Light the rows up to one of them, and say what its chain says. */
  show(at) {
    const i = this.lines[at];
    this.light(at);
    this.range.value = at;
    this.range.setAttribute("aria-valuetext", this.said(i));
    this.where.textContent = `step ${this.chains.columns.step[i]}`;
    this.player.bars = thinRow(this.chains, i, [], [], true).bars;
    this.say(i);
  }

  light(at) {
    this.lines.forEach((each, k) => {
      const node = this.nodes.get(each);
      node.classList.toggle("lk-on", k === at);
      node.classList.toggle("lk-later", k > at);
      for (const dot of this.dots.get(each)) {
        dot.classList.toggle("lk-later", k > at);
        dot.classList.toggle("lk-now", k === at);
      }
    });
    this.reached.setAttribute("d", this.edgePath(at + 1));
  }

  say(i) {
    const before = h("b", { class: "lk-saying" }, ...stageName(this.chains.name("stage", i)).slice(0, 1), `step ${this.chains.columns.step[i]}`);
    const live = { onHot: (step) => this.hot(step), onBar: (bar) => this.player.setTime(bar.span[0]), onPlay: (range) => this.player.play(range) };
    const fault = this.chains.fault(i);
    const badge = fault && fault !== "no_anchor" ? h("span", { class: "lk-badge", title: this.chains.meaning(i) }, fault.replaceAll("_", " ")) : null;
    this.words.replaceChildren(h("p", { class: "lk-thought" }, before, ...chainText(this.chains, i, { live: i === this.selected ? live : null }), badge ? " " : "", badge ?? ""));
  }

  hot(step) {
    this.player.setHot(step);
    for (const node of this.words.querySelectorAll("[data-step]")) node.classList.toggle("lk-hot", node.dataset.step === String(step));
  }

  stopAt(i) {
    this.stop();
    this.select(i);
  }

  /** Each bar of a row moves from where it was in the row before. */
  grow(at) {
    if (at === 0 || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const old = this.nodes.get(this.lines[at - 1]).querySelectorAll(".lk-bar");
    const bars = [...this.nodes.get(this.lines[at]).querySelectorAll(".lk-bar")];
    for (const bar of bars) {
      const from = [...old].find((each) => each.title.split(":")[0] === bar.title.split(":")[0]);
      if (!from) bar.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 0.9 * BEAT });
      else bar.animate([{ left: from.style.left, width: from.style.width }, { left: bar.style.left, width: bar.style.width }], { duration: 0.8 * BEAT, easing: "ease-out" });
    }
  }

  toggle() {
    if (this.playing) return this.stop();
    const at = this.lines.indexOf(this.selected);
    this.select(this.lines[at + 1 < this.lines.length ? at : 0]);
    const next = () => {
      const now = this.lines.indexOf(this.selected) + 1;
      if (now >= this.lines.length) return this.stop();
      this.select(this.lines[now]);
      this.grow(now);
    };
    this.playing = setInterval(next, BEAT);
    this.face();
  }

  stop() {
    clearInterval(this.playing);
    this.playing = null;
    this.face();
  }

  face() {
    const path = this.playing ? "M3 2h3v10H3zM8 2h3v10H8z" : "M3.5 1.5v11l9-5.5z";
    this.button.setAttribute("aria-label", this.playing ? "pause" : "play the training");
    this.button.querySelector("path").setAttribute("d", path);
    this.root.dataset.playing = this.playing ? "true" : "false";
  }

  key(event) {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input") || event.target === this.player.slider) return;
    if (event.target.matches("button") && [" ", "Enter"].includes(event.key)) return;
    const { film } = this.player;
    if (event.key === "m") return film.setMuted(!film.video.muted);
    const by = STEP_KEYS[event.key];
    if (event.key !== " " && !by) return;
    event.preventDefault();
    if (by) this.stopAt(this.lines[clamp(this.lines.indexOf(this.selected) + by, 0, this.lines.length - 1)]);
    else this.toggle();
  }

  close() {
    this.stop();
    this.host.off?.("selected", this.listener);
    this.resized.disconnect();
    this.player.close();
    this.clips.close();
    this.el.replaceChildren();
  }
}
