/** What is shown of one chain, of its group and of its query through the stages: spans, text, reward terms. */

import { clamp, EPSILON, h, safeText, letter, many, number, parts, percent, CORRECT_IOU, signed, spans, svg, times } from "./core.js";
import { MOST_STEPS } from "./chains.js";
import { stageName } from "./stages.js";

export const LOOKS = { truth: "truth", answer: "answer" };

/** Spans of a chain in the order in which it names them, the answer last. */
export function steps(chains, i) {
  const { anchors, answer, ious } = chains.columns;
  const found = anchors[i].map((anchor, k) => ({ step: k, name: `anchor ${k + 1}`, look: "anchor", at: anchor, iou: ious[i][k] ?? undefined }));
  if (answer[i]) found.push({ step: found.length, name: "answer", look: "answer", at: answer[i], iou: ious[i].at(-1) ?? undefined });
  return found;
}

/** A bar for each span of a step, the figures at the last. @returns {Bar[]} */
function stepBars(chains, step, before, count, lane = 0) {
  const way = before === undefined ? "" : chains.way(before, step.iou);
  const mark = way && h("span", { class: { "▲": "lk-up", "▼": "lk-down" }[way] ?? "" }, ` ${way}`);
  const note = step.iou === undefined ? null : [number(step.iou), ...(mark ? [mark] : [])];
  return parts(step.at).map((span, k, all) => ({
    span,
    look: step.look,
    name: all.length > 1 ? `${step.name}, span ${k + 1} of ${all.length}` : step.name,
    step: step.step,
    iou: step.iou,
    shade: step.look === "anchor" ? `${Math.round(58 + (42 * (step.step + 1)) / Math.max(1, count))}%` : null,
    note: k + 1 === all.length ? note : null,
    lane,
  }));
}

/** The row of the truth, at whose end `end` may stand; no row where nobody has told it. */
export const truthRows = (moment, end = null) => (moment.windows.length ? [{ ...truthRow(moment), ...(end && { end }) }] : []);
const truthRow = (moment) => ({
  label: ["truth"],
  truth: true,
  bars: moment.windows.map((window) => ({ span: window, look: "truth", name: "truth", step: "truth" })),
  end: [moment.windows.length === 1 ? times(moment.windows[0]) : `${moment.windows.length} windows`],
});

/** @returns {TrackRow[]} */
export function chainRows(chains, i) {
  const all = steps(chains, i);
  const anchors = all.filter((step) => step.look === "anchor");
  const shown = all.filter((step) => step.look === "answer" || step.step < MOST_STEPS);
  const rows = shown.map((step, k) => ({
    label: [step.name],
    bars: stepBars(chains, step, shown[k - 1]?.iou, Math.min(anchors.length, MOST_STEPS)),
    end: [spans(step.at)],
  }));
  if (anchors.length > MOST_STEPS) rows.splice(MOST_STEPS, 0, { label: [`${anchors.length - MOST_STEPS} more`], bars: [] });
  if (!chains.columns.answer[i]) rows.push({ label: ["answer"], bars: [], end: ["none"] });
  return [...truthRows(chains.moment(i)), ...rows];
}

/** A chain as one row of thin bars. */
export function thinRow(chains, i, label, end, on, title) {
  const all = steps(chains, i).filter((step) => step.look === "answer" || step.step < 5);
  const count = all.filter((step) => step.look === "anchor").length;
  return { label, end, on, thin: true, chain: i, title, bars: all.flatMap((step, k) => stepBars(chains, step, all[k - 1]?.iou, count, k)) };
}

/** A chain's own words: its anchors and its answer as chips, tags only where they are what went wrong. */
export function chainText(chains, i, { live = null, same = 0 } = {}) {
  const text = chains.columns.text[i];
  const whole = ["ok", "no_anchor", "a span"].includes(chains.name("status", i));
  const nodes = [];
  const plain = (piece, from) => {
    for (const part of piece.split(/(<\/?(?:think|timestamp|answer|option)>)/)) {
      const cut = clamp(same - from, 0, part.length);
      from += part.length;
      if (/^<\/?\w+>$/.test(part)) {
        if (!(whole && /(think|answer)>$/.test(part))) nodes.push(h("span", { class: "lk-tag" }, part));
        continue;
      }
      if (cut) nodes.push(h("span", { class: "lk-same" }, safeText(part.slice(0, cut))));
      if (cut < part.length) nodes.push(safeText(part.slice(cut)));
    }
  };
  let at = 0;
  const chips = steps(chains, i).map((step) => {
    const made = (words) => (live ? chip(step, inSeconds(words, step.at), live) : h("span", { class: `lk-chip lk-${step.look}` }, inSeconds(words, step.at)));
    return [...step.at.slice(2, 4), made];
  });
  const option = chains.columns.option_chars?.[i];
  if (option) chips.push([...option, (words) => optionChip(chains, i, words)]);
  for (const [begin, end, made] of chips) {
    if (begin < at) continue;
    plain(text.slice(at, begin), at);
    nodes.push(made(safeText(text.slice(begin, end).replace(/<\/?\w+>/g, "").trim())));
    at = end;
  }
  plain(text.slice(at), at);
  return text ? nodes : [h("em", {}, "the model wrote nothing")];
}

/** A span's words with its unit; where a model counts otherwise (hundredths of the video), the seconds that they mean. */
function inSeconds(words, at) {
  const ends = parts(at).flat();
  const first = Number(words.match(/\d+(?:\.\d+)?/)?.[0] ?? ends[0]);
  const means = words.includes(":") || ends.some((each) => Math.abs(each - first) < 0.01);
  return means ? `${words} s` : `${words}: ${parts(at).map(times).join(", ")} s`;
}

/** The option that was chosen, as it was written, and whether it is the right one. */
function optionChip(chains, i, words) {
  const { options, choice } = chains.moment(i);
  const chosen = chains.columns.option[i];
  const right = chosen === choice;
  const title = `chosen: ${letter(chosen)} ${safeText(options[chosen])}; ${right ? "right" : `right is ${letter(choice)} ${safeText(options[choice])}`}`;
  return h("span", { class: right ? "lk-chip lk-choice lk-right-choice" : "lk-chip lk-choice", title }, `${words} ${right ? "✓" : "✗"}`);
}

function chip(step, words, { onHot, onBar, onPlay }) {
  const bar = { span: parts(step.at)[0], step: step.step };
  const iou = step.iou === undefined ? "" : `, IoU ${number(step.iou)}`;
  return h(
    "button",
    {
      type: "button",
      class: `lk-chip lk-${step.look}`,
      "data-step": step.step,
      "aria-label": `${step.name}, ${words}${iou}`,
      title: `${step.name}${iou}\nclick: go there · double-click: play it`,
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

export const isUnpaid = ({ columns }, i) => columns.total[i] === null && columns.earned[i].every((each) => each === null);

/** Every term of a chain's reward, what it counts for, and why. */
export function rewardTable(chains, i) {
  if (!chains.isTold(i)) return untold(chains, i);
  const { earned, total, advantage, reasons } = chains.columns;
  if (isUnpaid(chains, i)) return [h("div", { class: "lk-side-title" }, "No reward ", h("small", {}, "a prediction is not paid"))];
  const weights = chains.weights(i);
  const counts = chains.terms.map((_, k) => contribution(chains, i, k));
  const scale = Math.max(1, ...counts.map(Math.abs));
  const rows = chains.terms.map((term, k) => {
    if (weights && !(term in weights)) return []; // a user's own term that other chains of the page were paid by
    const cells = [[number(earned[i][k])], [weights ? `× ${weights[term]}` : "× ?"], [weights ? number(counts[k]) : "–"], [amount(counts[k] / scale)]];
    const node = line([term], cells, { class: weights && weights[term] === 0 ? "lk-idle" : "" });
    const reason = chains.names.reason[reasons[i][k]];
    return [node, reason ? h("tr", { class: "lk-reason" }, h("td", { colspan: "5" }, safeText(reason))) : null];
  });
  const group = chains.group(i);
  const mean = group.reduce((sum, each) => sum + chains.total[each], 0) / group.length;
  const sum = line(["total"], [[""], [""], [h("b", {}, number(total[i]))], [""]], { class: "lk-sum" });
  const paid = advantage[i] === null
    ? "as the reward would have paid: not sampled in training"
    : `advantage ${signed(advantage[i])} in its group of ${group.length}, mean ${number(mean)}`;
  return [
    h("div", { class: "lk-side-title" }, `Reward ${number(total[i])} `, h("small", {}, paid)),
    table({ class: "lk-reward-breakdown" }, ["term", "earned", "weight", "counts", ""], ...rows.flat().filter(Boolean), sum),
    ...(weights ? [] : [h("p", { class: "lk-aside" }, OTHER_WEIGHTS)]),
  ];
}

/** What can be said of chains when nobody has said when it happens: how far they agree. */
function untold(chains, i) {
  const group = chains.group(i);
  const found = group.filter((each) => chains.columns.answer[each]);
  const different = new Set(found.map((each) => times(chains.columns.answer[each]))).size;
  const said = group.length < 2 ? "" : `${many(group.length, "chain")}: ${found.length} with an answer, ${different} different.`;
  return [
    h("div", { class: "lk-side-title" }, "No truth, no score ", h("small", {}, "nobody has said when it happens")),
    h("p", { class: "lk-why" }, said),
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
export function ranked(chains, i) {
  const value = (each) => (Number.isNaN(chains.total[each]) ? -Infinity : chains.total[each]);
  return [...chains.group(i)].sort((a, b) => value(b) - value(a) || chains.iou[b] - chains.iou[a] || a - b);
}

/** What a term adds to a chain's total; what it earned, where its weight is not known. */
function contribution(chains, i, k) {
  const weights = chains.weights(i);
  return (weights ? (weights[chains.terms[k]] ?? 0) : 1) * (chains.columns.earned[i][k] ?? 0);
}

/** Why the chains of a group earned differently: in words, then term by term. */
export function groupPanel(chains, i) {
  if (!chains.isTold(i)) return untold(chains, i);
  const order = ranked(chains, i);
  if (order.length > 1 && isUnpaid(chains, i)) {
    const ious = order.map((each) => chains.iou[each]);
    return [h("div", { class: "lk-side-title" }, "No reward ", h("small", {}, "predictions are not paid")), h("p", { class: "lk-why" }, `${order.length} answers to this prompt, IoU ${number(Math.min(...ious))} to ${number(Math.max(...ious))}.`)];
  }
  if (order.length === 1) {
    return [h("p", { class: "lk-why" }, "One chain was sampled for this prompt: there is no other to compare it with."), ...rewardTable(chains, i)];
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
    table({ class: "lk-reward-breakdown lk-compare" }, [known ? "adds" : "earned", "best", "this", "worst", "all"], ...rows, line(["total"], [...totals, [""]], { class: "lk-sum" })),
    ...(known ? [] : [h("p", { class: "lk-aside" }, OTHER_WEIGHTS)]),
  ];
}

function why(chains, order, falls) {
  const [best, worst] = [order[0], order.at(-1)];
  const fall = chains.total[best] - chains.total[worst];
  const answers = new Set(order.map((each) => String(chains.columns.answer[each]?.slice(0, 2)))).size;
  const sentences = [`${answers === 1 ? "All give one answer" : `${answers} different answers`} among ${order.length} chains.`];
  if (!(fall > EPSILON)) {
    sentences.unshift(`All earned ${number(chains.total[best])}: no advantage, nothing to learn from this group.`);
  } else {
    const largest = falls.filter((each) => Math.abs(each.fall) > 0.005).sort((a, b) => Math.abs(b.fall) - Math.abs(a.fall));
    const named = largest.slice(0, 2).map((each) => `${each.term} ${signed(-each.fall)}`);
    sentences.unshift(`From best to worst the reward falls by ${number(fall)}${named.length ? `: ${named.join(", then ")}` : ""}.`);
  }
  const broken = order.filter((each) => !["ok", "no_anchor"].includes(chains.name("status", each))).length;
  if (broken) sentences.push(`${broken} broke the form.`);
  return sentences.join(" ");
}

/** Where all chains of a group lie on one term, the selected one filled. */
function dots(shares, chosen) {
  const picture = svg("svg", { viewBox: "0 0 100 16", class: "lk-dots", "aria-hidden": "true", preserveAspectRatio: "none" });
  picture.append(svg("line", { x1: 50, x2: 50, y1: 1, y2: 15 }));
  const at = (share) => (50 + 46 * clamp(share, -1, 1)).toFixed(1);
  picture.append(...shares.filter((_, k) => k !== chosen).map((share) => svg("path", { d: `M${at(share)} 4v8` })));
  if (chosen >= 0) picture.append(svg("path", { d: `M${at(shares[chosen])} 1v14`, class: "lk-chosen" }));
  return picture;
}

/** For each stage the chain to show of a query: the selected one, else the first sample of the latest step. */
export function throughStages(chains, i) {
  const all = chains.byMoment.get(chains.columns.moment[i]);
  return chains.names.stage
    .map((stage, at) => {
      const own = all.filter((each) => chains.columns.stage[each] === at);
      const { step, sample } = chains.columns;
      const latest = own.reduce((a, b) => (a === null || step[b] > step[a] || (step[b] === step[a] && sample[b] < sample[a]) ? b : a), null);
      return { stage, own, shown: own.includes(i) ? i : latest };
    })
    .filter((each) => each.own.length);
}

export function stagesPanel(chains, i) {
  const found = throughStages(chains, i);
  const mean = (list, value) => list.reduce((sum, each) => sum + value(each), 0) / list.length;
  if (chains.sources.length) return sourcesPanel(chains, found);
  const rows = found.map(({ stage, own }) =>
    line(stageName(stage), [
      [own.length],
      [number(mean(own, (each) => chains.anchors[each]), 1)],
      [number(mean(own, (each) => chains.iou[each]))],
      [chains.isTold(i) ? `${Math.round(100 * mean(own, (each) => Number(chains.iou[each] >= CORRECT_IOU)))} %` : "–"],
    ]),
  );
  const missing = chains.names.stage.filter((stage) => !found.some((each) => each.stage === stage));
  return [
    h("div", { class: "lk-side-title" }, "This query through the stages"),
    table({ class: "lk-reward-breakdown lk-stages-table" }, ["stage", "chains", "anchors", "mean IoU", "IoU ≥ 0.5"], ...rows),
    missing.length ? h("p", { class: "lk-aside" }, `Not asked in: ${safeText(missing.join(", "))}.`) : "",
    chains.left ? h("p", { class: "lk-aside" }, "Counted over the chains that are saved here.") : "",
    h("p", { class: "lk-aside" }, "The bars show one chain of each stage: the selected one, else the latest step's first sample."),
  ];
}

/** Each model's answer to one query, as far from the first model's as it is. */
function sourcesPanel(chains, found) {
  const several = found.some(({ own }) => own.length > 1);
  const rows = found.map(({ stage, own, shown }) => {
    const answer = chains.columns.answer[shown];
    const delta = chains.delta[shown];
    const same = stage === chains.reference || Number.isNaN(delta);
    return line(stageName(stage), [[answer ? times(answer) : "none"], [number(chains.iou[shown])], [same ? "–" : signed(delta)], ...(several ? [[own.length]] : [])], { title: safeText(stage) });
  });
  const missing = chains.sources.filter((source) => !found.some((each) => each.stage === source));
  return [
    h("div", { class: "lk-side-title" }, "This query, model by model"),
    table({ class: "lk-reward-breakdown lk-stages-table" }, ["model", "answer", "IoU", "vs first", ...(several ? ["samples"] : [])], ...rows),
    missing.length ? h("p", { class: "lk-aside" }, `Not answered by: ${safeText(missing.join(", "))}.`) : "",
  ];
}

export function commonStart(a, b) {
  let at = 0;
  while (at < Math.min(a.length, b.length) && a[at] === b[at]) at++;
  return a.lastIndexOf(" ", at) + 1;
}
