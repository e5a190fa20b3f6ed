/**
 * A report's own script: draws figures and explorers when they come near the window, and keeps the contents in step.
 *
 * Everything that is drawn replaces a picture which already stands there, so nothing is lost when a drawing fails, when
 * the page is printed, or where scripts don't run. The page's policy forbids every request.
 */

const NEAR = "800px 0px";
// As wide as the contents need beside the text; the style sheet breaks there too.
const WIDE = matchMedia("(min-width: 1120px)");
const THEMES = [
  ["", "◐", "as the system"],
  ["light", "☀", "light"],
  ["dark", "☾", "dark"],
];
const CONFIG = {
  responsive: true,
  displaylogo: false,
  displayModeBar: "hover",
  showLink: false,
  plotlyServerURL: "",
  topojsonURL: "",
};

const stored = (key) => JSON.parse(document.querySelector(`script[data-key="${CSS.escape(key)}"]`).textContent);

// ---------------------------------------------------------------- figures

let plotly = null;

/** Plotly, unpacked on first use. Its script is in the page's policy by its hash, so nothing else can come this way. */
function readyPlotly() {
  plotly ??= unpack(document.querySelector("script[data-plotly]").textContent).then((source) => {
    const script = document.createElement("script");
    script.textContent = source;
    document.head.append(script);
    if (!globalThis.Plotly) throw new Error("plotly did not start");
    // It would tell the console of every dollar sign that MathJax isn't there.
    globalThis.Plotly.setPlotConfig({ logging: 0 });
    return globalThis.Plotly;
  });
  return plotly;
}

async function unpack(base64) {
  const packed = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function drawPlot(figure) {
  const library = await readyPlotly();
  const { data, layout } = stored(figure.dataset.plot);
  const live = figure.querySelector(".live");
  delete layout.width;
  live.hidden = false;
  await library.newPlot(live, data, { ...layout, autosize: true }, CONFIG);
  if (!layout.meta?.chains) return;
  figure.append(element("figcaption", { class: "aside clickable" }, "Click a point or a bar to open its chains."));
  figure.classList.add("holds");
  live.on("plotly_click", ({ points: [point] }) => {
    const held = globalThis.labkit.heldBy(layout.meta.chains, point.data.meta, point.pointNumber);
    if (held?.keys.length) openChains(held);
  });
}

// ---------------------------------------------------------------- chains of a figure's point

const many = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const unpacked = new Map();

/** The explorer of this page that holds most of the chains, and where they stand in it; null where there is none. */
async function explorerOf(keys) {
  let best = null;
  for (const { dataset } of document.querySelectorAll("[data-explorer]")) {
    const entry = stored(dataset.explorer);
    if (entry.state.shows !== "explorer") continue;
    if (!unpacked.has(dataset.explorer)) unpacked.set(dataset.explorer, globalThis.labkit.chainsOf(entry));
    const found = globalThis.labkit.findHeld(await unpacked.get(dataset.explorer), keys);
    if (found.rows.length > (best?.rows.length ?? 0)) best = { entry, ...found };
  }
  return best;
}

/** A dialog with the chains that a point holds: those that are saved on this page in an explorer, the others by name. */
async function openChains({ keys, count, name }) {
  const close = element("button", { type: "button", "aria-label": "close" }, "×");
  const labels = [...new Set(keys.map((key) => key.label))].filter(Boolean).join(" and ");
  const title = [many(count, "chain"), [labels, name].filter(Boolean).join(", ")].filter(Boolean).join(": ");
  const note = element("p", { class: "aside", role: "status" }, "Looking for them …");
  const place = element("div", {});
  const dialog = element("dialog", { class: "chains", "aria-label": title }, element("header", {}, element("h2", {}, title), close), note, place);
  close.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  let explorer = null;
  dialog.addEventListener("close", () => {
    explorer?.close();
    dialog.remove();
  });
  dialog.showModal();
  const found = await explorerOf(keys);
  const missing = found ? found.missing : keys;
  note.replaceChildren(...notes(keys.length, count, missing));
  note.hidden = !note.hasChildNodes();
  if (found && dialog.open) {
    explorer = await globalThis.labkit.mountFromState(place, found.entry);
    explorer.choose(found.rows);
    explorer.root.focus({ preventScroll: true });
  }
  dialog.dataset.chains = found ? found.rows.length : 0;
}

/** What to say of chains that the page doesn't hold: their queries, and what shows them. */
function notes(named, count, missing) {
  const said = named < count ? [`This figure names ${named.toLocaleString("en")} of them. `] : [];
  if (!missing.length) return said;
  const qids = [...new Set(missing.map((key) => key.qid))];
  const first = qids.slice(0, 12).join(", ") + (qids.length > 12 ? `, and ${qids.length - 12} more` : "");
  const some = `${missing.length.toLocaleString("en")} of them`;
  const all = `${missing.length < named ? some : named === 1 ? "It" : "They"} ${missing.length === 1 ? "is" : "are"}`;
  const reads = [...new Set(missing.map((key) => key.read))].flatMap((read, at) => [at ? " or " : "", element("code", {}, read)]);
  return [...said, `${all} not saved on this page: ${first}. In a notebook of the run `, ...reads, " shows them."];
}

async function drawExplorer(figure) {
  const live = figure.querySelector(".live");
  live.hidden = false;
  await globalThis.labkit.mountFromState(live, stored(figure.dataset.explorer));
  // Several explorers of one page must not have one name, nor must their parts.
  const number = [...document.querySelectorAll("[data-explorer]")].indexOf(figure) + 1;
  if (number === 1) return;
  for (const place of live.querySelectorAll("section[aria-label], [role=search][aria-label], [role=region][aria-label]")) {
    place.setAttribute("aria-label", `${place.getAttribute("aria-label")} ${number}`);
  }
}

/** Draw what a figure holds; its picture stays for print, and in its place when the drawing fails. */
async function draw(figure) {
  figure.dataset.drawn = "now";
  try {
    await (figure.dataset.plot ? drawPlot(figure) : drawExplorer(figure));
    figure.dataset.drawn = "yes";
  } catch (error) {
    figure.querySelector(".live").remove();
    figure.dataset.drawn = "failed";
    const note = document.createElement("figcaption");
    note.className = "aside";
    note.textContent = `Only the picture is shown: ${error.message}`;
    figure.append(note);
  }
}

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      draw(target);
    }
  },
  { rootMargin: NEAR },
);
for (const figure of document.querySelectorAll("[data-plot], [data-explorer]")) near.observe(figure);

// ---------------------------------------------------------------- contents

const side = document.querySelector(".side");
const contents = document.querySelector(".contents");
const fold = () => (contents.open = WIDE.matches);
WIDE.addEventListener("change", fold);
fold();

const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
const places = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);

function mark() {
  const passed = places.filter((place) => place.getBoundingClientRect().top < innerHeight / 3);
  const here = links.get((passed.at(-1) ?? places[0])?.id);
  for (const link of links.values()) {
    if (link === here) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  if (!here || !WIDE.matches) return;
  const { top, bottom } = here.getBoundingClientRect();
  if (top < 0) side.scrollTop += top - 16;
  else if (bottom > innerHeight) side.scrollTop += bottom - innerHeight + 16;
}

let waiting = false;
addEventListener(
  "scroll",
  () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      mark();
    });
  },
  { passive: true },
);
mark();

// ---------------------------------------------------------------- theme

const button = document.querySelector("[data-theme-button]");
let theme = 0;
button.hidden = false;
button.addEventListener("click", () => {
  theme = (theme + 1) % THEMES.length;
  const [name, sign, words] = THEMES[theme];
  document.documentElement.dataset.theme = name;
  if (!name) delete document.documentElement.dataset.theme;
  button.textContent = sign;
  button.setAttribute("aria-label", `Theme: ${words}`);
});

document.documentElement.dataset.ready = "yes";
