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
}

async function drawExplorer(figure) {
  const live = figure.querySelector(".live");
  live.hidden = false;
  await globalThis.labkitMount(live, stored(figure.dataset.explorer));
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
