/** The video scrubber: one clip and rows of spans. */

import { EPSILON, h, number, safeText, times } from "./core.js";
import { Player } from "./player.js";
import { LOOKS } from "./chain.js";
import { SCRUB_HINT, SCRUB_KEYS } from "./keys.js";

export class Scrubber {
  constructor(el, { page, clips }, host) {
    Object.assign(this, { el, host, clips, page });
    this.root = h("section", { class: "lk lk-scrubber", "aria-label": `video ${safeText(page.name)}`, tabindex: "-1", "data-lm-suppress-shortcuts": "true", "data-view": "scrubber" });
    this.player = new Player(this.root, {
      onHot: (step) => this.player.setHot(step),
      onBar: (bar) => {
        this.player.stop();
        this.player.setTime(bar.span[0]);
      },
      onTime: (time) => this.syncTime(time),
      hint: SCRUB_HINT,
    });
    const { screen, controls, tracks } = this.player;
    this.root.append(h("p", { class: "lk-query" }, safeText(page.name)), screen, controls, tracks);
    this.root.addEventListener("keydown", (event) => this.key(event));
    for (const kind of ["keyup", "keypress"]) this.root.addEventListener(kind, (event) => event.stopPropagation());
    el.replaceChildren(this.root);
    this.root.labkit = this;
    this.player.load(clips.get(0), { duration: page.duration, film: (whole) => clips.film(0, whole) });
    this.player.setRows(page.rows.map((row, at) => this.row(row, at)), page.rows.filter((row) => row.label === "truth").flatMap((row) => row.spans), page.rows.some((row) => row.ious));
    this.player.setTime(host.get("time") ?? 0);
    this.listener = () => Math.abs(this.player.time - host.get("time")) > EPSILON && this.player.setTime(host.get("time"));
    host.on?.("time", this.listener);
  }

  row(row, at) {
    const bars = row.spans.map((each, k) => {
      const iou = row.ious?.[k];
      return { span: each, look: LOOKS[row.label] ?? "anchor", name: safeText(row.label), step: `${at}.${k}`, iou, note: iou === undefined ? null : [number(iou)] };
    });
    return { label: [safeText(row.label)], truth: row.label === "truth", bars, end: [row.spans.length === 1 ? times(row.spans[0]) : `${row.spans.length} spans`] };
  }

  /** Python hears of the time at most ten times a second. */
  syncTime(time) {
    this.latest = time;
    this.syncing ??= setTimeout(() => {
      this.syncing = null;
      if (this.host.get("time") !== this.latest) this.host.set("time", this.latest);
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
    clearTimeout(this.syncing);
    this.host.off?.("time", this.listener);
    this.player.close();
    this.clips.close();
    this.el.replaceChildren();
  }
}
