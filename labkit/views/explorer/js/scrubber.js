/** The video scrubber: one clip and rows of spans. */

import { EPSILON, h, harmless } from "./core.js";
import { Player } from "./player.js";
import { LOOKS, times } from "./chain.js";
import { SCRUB_HINT, SCRUB_KEYS } from "./keys.js";

export class Scrubber {
  constructor(el, { told, clips }, host) {
    Object.assign(this, { el, host, clips, told });
    this.root = h("section", { class: "lk lk-scrubber", "aria-label": `video ${harmless(told.name)}`, tabindex: "-1", "data-lm-suppress-shortcuts": "true", "data-view": "scrubber" });
    this.player = new Player(this.root, {
      onHot: (step) => this.player.setHot(step),
      onBar: (bar) => {
        this.player.stop();
        this.player.setTime(bar.span[0]);
      },
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
