/** The chain explorer: filters, table and the selected chain. */

import { clamp, h, safeText, later, letter, many, number, parts, spaced, spans } from "./core.js";
import { Chains, REGRESSIONS } from "./chains.js";
import { stageName } from "./stages.js";
import { NOTE_DELAY, Player } from "./player.js";
import { Table } from "./table.js";
import { chainRows, commonStart, groupPanel, isUnpaid, rewardTable, ranked, stagesPanel, steps, thinRow, chainText, throughStages, truthRows } from "./chain.js";
import { HINT, KEYS } from "./keys.js";

// Chains whose text is made searchable at once.
const AHEAD = 200;

const NO_FILTER = { text: "", stage: "", status: "", kind: "", anchors: "", regress: "", low: 0, high: 1, chosen: null };
const VIEWS = { chain: "Chain", group: "Group", stages: "Stages" };
/** What the parts are called of which each query has a chain: a run's stages, or models whose files are compared. */
const STAGE_WORDS = { tab: "Stages", one: "stage", all: "all stages" };
const MODEL_WORDS = { tab: "Models", one: "model", all: "all models" };
/** What a page shares with Python, and where it stands in the filter. */
const SHARED = { filter: "text", stage: "stage", kind: "kind" };

export class Explorer {
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
    this.root.classList.toggle("lk-models", this.chains.sources.length > 0);
    this.root.style.setProperty("--height", `${this.height}px`);
    this.chains.names.stage.forEach(stageName); // marks in the order of the names, not of the rows
    this.parts = this.chains.sources.length ? MODEL_WORDS : STAGE_WORDS;
    this.table = new Table(this.chains, { onSelect: (i) => this.pick(i), onSort: (name, down) => this.sortBy(name, down) });
    this.player = new Player(this.root, {
      onHot: (step) => this.hot(step),
      onBar: (bar) => this.go(bar),
      onRow: (i) => this.select(i),
      onTime: (time) => this.mark(time),
      hint: HINT,
    });
    this.clips.onShare = (promise, share) => this.player.setShare(promise, share);
    this.title = h("p", { class: "lk-query" });
    this.facts = h("p", { class: "lk-facts" });
    this.side = h("div", { class: "lk-side" });
    this.words = h("div", { class: "lk-words", tabindex: "0", role: "group", "aria-label": "what the model wrote" });
    this.tabs = h("div", { class: "lk-tabs", role: "tablist", "aria-label": "view" });
    const id = this.table.id;
    for (const [view, label] of Object.entries(VIEWS)) {
      this.tabs.append(h("button", { type: "button", role: "tab", id: `${id}-${view}`, "aria-controls": `${id}-panel`, "data-tab": view, title: `press ${Object.keys(VIEWS).indexOf(view) + 1}`, onclick: () => this.show(view) }, view === "stages" ? this.parts.tab : label));
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
    if (!this.chains.told && this.chains.count) this.becomeAsked();
    this.root.append(this.toolbar(), ...this.notes(), h("div", { class: "lk-main" }, this.table.frame, this.detail), this.help());
    this.root.addEventListener("keydown", (event) => this.key(event));
    // JupyterLab's commands listen to what is typed in an output, too.
    for (const kind of ["keyup", "keypress"]) this.root.addEventListener(kind, (event) => event.stopPropagation());
    this.el.replaceChildren(this.root);
    this.root.labkit = this;
  }

  /** Some chains of one question, whose truth nobody has told: nothing to filter by, and a short list. */
  becomeAsked() {
    this.root.classList.add("lk-asked");
    const stages = this.chains.names.stage.length;
    this.root.style.setProperty("--chains", this.chains.count);
    this.table.frame.hidden = this.chains.count === 1;
    this.tabs.hidden = this.chains.count === 1;
    for (const tab of this.tabs.children) {
      tab.hidden = tab.dataset.tab === "stages" && stages === 1;
      if (tab.dataset.tab === "group") tab.textContent = "All chains";
    }
  }

  toolbar() {
    const changed = (name, read) => (event) => this.setFilter(name, read(event.target.value));
    const choice = (name, label, options) => {
      const select = h("select", { "aria-label": label, "data-filter": name, onchange: changed(name, String) });
      for (const [value, text] of options) select.append(h("option", { value }, safeText(text)));
      return select;
    };
    const names = this.chains.left?.names ?? this.chains.names;
    const named = (column, all) => [["", all], ...names[column].filter(Boolean).map((name) => [name, spaced(name)])];
    const bound = (name, label, empty) =>
      h("input", { type: "number", min: 0, max: 1, step: 0.05, placeholder: empty, "aria-label": label, "data-filter": name, oninput: changed(name, (value) => (value === "" ? NO_FILTER[name] : Number(value))) });
    const regressions = Object.entries(REGRESSIONS).filter(([name]) => name !== "base" || this.chains.compared);
    this.fields = {
      text: h("input", { type: "search", placeholder: "search chains…", "aria-label": "filter by text", "data-filter": "text", class: "lk-search", oninput: changed("text", String) }),
      stage: choice("stage", this.parts.one, named("stage", this.parts.all)),
      status: choice("status", "how the form was kept", named("status", "any form")),
      kind: choice("kind", "class of failure", named("kind", "any failure")),
      anchors: choice("anchors", "number of anchors", [["", "any anchors"], ["0", "no anchor"], ["1", "1 anchor"], ["2", "2 anchors"], ["3", "3 anchors"], ["4", "4 or more"]]),
      regress: choice("regress", "regressions", [["", "any course"], ...regressions.map(([name, each]) => [name, each.reference ? `${each.label} ${safeText(this.chains.reference)}` : each.label])]),
      low: bound("low", "lowest IoU", "0"),
      high: bound("high", "highest IoU", "1"),
    };
    this.fields.kind.hidden = !names.kind.some(Boolean);
    this.fields.regress.hidden = !this.chains.told;
    this.count = h("span", { class: "lk-count", role: "status" });
    this.lift = h("button", { type: "button", class: "lk-quiet", title: "lift all filters (0)", onclick: () => this.clear() }, "clear");
    this.chosen = h("button", { type: "button", class: "lk-quiet lk-chosen", title: "show the others, too", onclick: () => this.choose(null) });
    const help = h("button", { type: "button", class: "lk-quiet lk-help-button", "aria-label": "keys", title: "keys (?)", onclick: () => this.dialog.showModal() }, "?");
    const { text, low, high, ...choices } = this.fields;
    const range = h("span", { class: "lk-range" }, h("span", { "aria-hidden": "true" }, "IoU"), low, "–", high);
    range.hidden = !this.chains.told;
    return h("div", { class: "lk-bar-top", role: "search", "aria-label": "filters" }, text, ...Object.values(choices), range, this.chosen, this.lift, this.count, help);
  }

  /** Grey lines under the filters: chains that are not here, and what the kernel has to say. */
  notes() {
    const { left } = this.chains;
    const hint = this.host.get("hint");
    const same = this.common();
    const search = h("button", { type: "button", class: "lk-quiet", onclick: () => this.searchAll() }, "");
    this.searchButton = left && this.host.find ? search : null;
    this.leftText = left && h("span", { role: "status" }, safeText(left.text));
    return [
      (left || same.length) && h("p", { class: "lk-notes lk-about" }, ...(same.length ? ["all chains: ", ...same, left ? ". " : ""] : []), this.leftText, this.searchButton),
      hint && h("p", { class: "lk-notes" }, safeText(hint)),
    ].filter(Boolean);
  }

  /** What all chains have in common, which no column repeats. */
  common() {
    const { chains } = this;
    if (chains.count < 2) return [];
    const values = {
      stage: () => h("span", { class: "lk-stage" }, ...stageName(chains.name("stage", 0))),
      step: () => (chains.columns.step[0] ? `step ${chains.columns.step[0]}` : null),
      anchors: () => many(chains.anchors[0], "anchor"),
      total: () => (Number.isNaN(chains.total[0]) ? null : `reward ${number(chains.total[0])}`),
      fault: () => (chains.fault(0) ? spaced(chains.fault(0)) : null),
    };
    const found = Object.entries(values).map(([name, value]) => Table.constant(chains, name) && value()).filter(Boolean);
    return found.flatMap((each, at) => (at ? [" · ", each] : [each]));
  }

  /** Ask the kernel for the chains that pass the filters among all; they come in the place of those that are here. */
  searchAll() {
    this.searchButton.disabled = true;
    this.leftText.textContent = "Asking the kernel …";
    this.host.find(this.filter);
    this.asking = setTimeout(() => {
      this.searchButton.disabled = false;
      this.leftText.textContent = `The kernel has not answered: it does once no cell is running; without one, run the notebook's cells. ${safeText(this.chains.left.text)}`;
    }, NOTE_DELAY);
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
    const chosen = this.chosenByPython();
    this.filter.chosen = chosen && new Set(chosen);
    this.fill();
    this.refilter();
    const wanted = this.host.get("selected") ?? -1;
    this.view = this.host.get("view") || "chain";
    this.draw();
    const here = this.chains.localIndex(wanted);
    this.select(here >= 0 && here < this.chains.count ? here : (this.table.view[0] ?? -1));
    if (chosen && !this.filter.chosen.has(this.selected)) this.select(this.table.view[0]);
    this.listeners = [
      ["chosen", () => this.choose(this.chosenByPython())],
      ["selected", () => this.select(this.chains.localIndex(this.host.get("selected")))],
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

  setFilter(name, value, fromPython = false) {
    this.filter[name] = value;
    const shared = Object.keys(SHARED).find((each) => SHARED[each] === name);
    if (shared && !fromPython) this.host.set(shared, value);
    if (fromPython) this.fill();
    this.refilter();
  }

  clear() {
    for (const name of Object.keys(SHARED)) this.host.set(name, "");
    this.choose(null);
  }

  /** List only these chains, those of a figure's point for example; null for all. What the other filters say is lifted. */
  choose(rows) {
    this.filter = { ...NO_FILTER, chosen: rows && new Set(rows) };
    this.fill();
    for (const name of Object.keys(SHARED)) if (this.host.get(name)) this.host.set(name, "");
    if (!rows && this.host.get("chosen")?.length) this.host.set("chosen", []);
    this.refilter();
    if (rows?.length && !this.filter.chosen.has(this.selected)) this.select(this.table.view[0]);
    else this.table.select(this.selected);
  }

  /** What Python has chosen of the chains that are here; null for all. */
  chosenByPython() {
    const places = this.host.get("chosen") ?? [];
    return places.length ? places.map((place) => this.chains.localIndex(place)).filter((i) => i >= 0) : null;
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
    this.chosen.hidden = !this.filter.chosen;
    this.chosen.textContent = `only ${many(this.filter.chosen?.size ?? 0, "chosen chain")} ×`;
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
    const place = this.chains.globalIndex(i);
    this.root.dataset.chain = place;
    if (this.host.get("selected") !== place) this.host.set("selected", place);
    this.host.onSelect?.(place);
    this.table.select(i, reveal);
    const moment = this.chains.moment(i);
    // One chain's siblings ask about the same clip: the frame that is looked at stays.
    if (!before || before.clip !== moment.clip || before.duration !== moment.duration) {
      this.player.time = 0;
      this.player.load(this.clips.get(moment.clip), { ...moment, waiting: this.clips.waiting, film: (whole) => this.clips.film(moment.clip, whole) });
    }
    this.draw();
    if (!before || before !== moment) this.player.setTime(steps(this.chains, i).at(-1)?.at[0] ?? moment.windows[0]?.[0] ?? 0);
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
    this.title.replaceChildren(`“${safeText(moment.query)}”`);
    const facts = [safeText(moment.qid), safeText(moment.video)];
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
      h("span", { class: k === moment.choice ? "lk-option lk-true" : "lk-option" }, `${letter(k)} ${safeText(option)}${k === chosen ? " (chosen)" : ""}${k === moment.choice ? " ✓" : ""}`),
    );
    return h("span", { class: "lk-options" }, ...list);
  }

  get live() {
    return { onHot: (step) => this.hot(step), onBar: (bar) => this.go(bar), onPlay: (range) => this.player.play(range) };
  }

  drawChain(i) {
    const moment = this.chains.moment(i);
    this.player.setRows(chainRows(this.chains, i), moment.windows, this.chains.isTold(i));
    this.side.replaceChildren(...rewardTable(this.chains, i));
    this.words.replaceChildren(h("p", { class: "lk-thought" }, ...chainText(this.chains, i, { live: this.live })));
  }

  drawGroup(i) {
    const { chains } = this;
    const moment = chains.moment(i);
    const order = ranked(chains, i);
    if (!chains.isTold(i)) return this.drawSamples(i, order);
    const paid = !isUnpaid(chains, i);
    const worth = (each) => (paid ? [h("b", {}, number(chains.total[each])), ` ${number(chains.iou[each])}`] : [`IoU ${number(chains.iou[each])}`]);
    const rows = order.map((each, k) =>
      thinRow(chains, each, [`${k + 1}`, h("small", {}, `#${chains.columns.sample[each]}`)], worth(each), each === i, `rank ${k + 1}, sample ${chains.columns.sample[each]}: reward ${number(chains.total[each])}, IoU ${number(chains.iou[each])}`),
    );
    this.player.setRows([...truthRows(moment, paid ? [h("small", {}, "reward IoU")] : null), ...rows], moment.windows);
    this.side.replaceChildren(...groupPanel(chains, i));
    const best = order[0];
    const { text } = chains.columns;
    const saying = (label, each, same) => h("p", { class: "lk-thought" }, h("b", { class: "lk-saying" }, label), ...chainText(chains, each, { same, live: each === i ? this.live : null }));
    this.words.replaceChildren(
      saying("best", best, 0),
      ...(best === i ? [] : [saying(`rank ${order.indexOf(i) + 1}`, i, commonStart(text[best], text[i]))]),
      ...(order.length > 1 && order.at(-1) !== i ? [saying("worst", order.at(-1), commonStart(text[best], text[order.at(-1)]))] : []),
    );
  }

  /** The chains of a prompt whose truth nobody has told: in their own order, for there is none better than another. */
  drawSamples(i, order) {
    const { chains } = this;
    const rows = order.map((each) => thinRow(chains, each, [chains.sampleName(each)], [this.answered(each)], each === i, `${chains.sampleName(each)}: ${this.answered(each)}`));
    this.player.setRows(rows);
    this.side.replaceChildren(...groupPanel(chains, i));
    this.words.replaceChildren(
      ...order.map((each) => h("p", { class: "lk-thought" }, h("b", { class: "lk-saying" }, chains.sampleName(each)), ...chainText(chains, each, { live: each === i ? this.live : null }))),
    );
  }

  answered(i) {
    const answer = this.chains.columns.answer[i];
    return answer ? spans(answer) : "no answer";
  }

  drawStages(i) {
    const { chains } = this;
    const moment = chains.moment(i);
    const found = throughStages(chains, i);
    const rows = found.map(({ stage, shown }) =>
      thinRow(chains, shown, stageName(stage), [chains.isTold(shown) ? `IoU ${number(chains.iou[shown])}` : this.answered(shown)], shown === i, `${safeText(stage)}, step ${chains.columns.step[shown]}, sample ${chains.columns.sample[shown]}`),
    );
    this.player.setRows([...truthRows(moment), ...rows], moment.windows);
    this.side.replaceChildren(...stagesPanel(chains, i));
    this.words.replaceChildren(
      ...found.map(({ stage, shown }) => h("p", { class: "lk-thought" }, h("b", { class: "lk-saying" }, ...stageName(stage)), ...chainText(chains, shown, { live: shown === i ? this.live : null }))),
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
      node.classList.toggle("lk-now", Boolean(at) && parts(at).some(([start, end]) => time >= start && time < end));
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
    this.go({ span: parts(next.at)[0], step: next.step });
    this.hot(next.step);
    this.player.setTime(next.at[0]);
  }

  playStep() {
    const all = steps(this.chains, this.selected);
    const chosen = all.find((each) => each.step === this.step) ?? all.at(-1);
    const span = this.step === "truth" || !chosen ? this.chains.moment(this.selected).windows[0] : parts(chosen.at)[0];
    if (span) this.player.play(span);
  }

  truth() {
    const [truth] = this.chains.moment(this.selected).windows;
    if (truth) this.go({ span: truth, step: "truth" });
  }

  answer() {
    const answer = this.chains.columns.answer[this.selected];
    if (answer) this.go({ span: parts(answer)[0], step: this.chains.columns.anchors[this.selected].length });
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
