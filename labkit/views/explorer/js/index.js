/**
 * The chain explorer and the video scrubber: one module without dependencies, for a notebook and for a plain page.
 *
 * labkit/views/explorer/page.py joins these modules into one. `render` is anywidget's entry; `mountFromState` and `mountAll`
 * draw a saved state where there is no kernel; `mount` and `mountScrubber` are what both use. Nothing here reads a model's
 * text for numbers: Python has parsed and measured every chain. Texts of models, queries and names only ever become text nodes.
 */

import { h, inflate } from "./core.js";
import { Chains } from "./chains.js";
import { Clips } from "./clips.js";
import { Explorer } from "./explorer.js";
import { Scrubber } from "./scrubber.js";
import { Watch } from "./watch.js";

/**
 * Draw the explorer into an element.
 * @param {{page: object, clips: Clips, height?: number}} source the unpacked columns, and clips by key
 * @param {{get: (name: string) => any, set: (name: string, value: any) => void, on?: Function, off?: Function, onSelect?: (i: number) => void}} host
 */
export const mount = (el, source, host) => new Explorer(el, source, host);

/** Draw the scrubber into an element. */
export const mountScrubber = (el, source, host) => new Scrubber(el, source, host);

function mountAny(el, page, host, ask = {}) {
  const sheets = host.get("sheets") ?? {};
  const held = Object.entries(host.get("clips")).map(([key, clip]) => [key, sheets[key] ? { ...clip, sheet: sheets[key] } : clip]);
  const films = Object.entries(host.get("films") ?? {}).map(([key, film]) => [key, { ...film, beside: true }]);
  const clips = new Clips(Object.fromEntries(held), { ...ask, films: Object.fromEntries(films) });
  if (host.get("shows") === "scrubber") return mountScrubber(el, { page, clips }, host);
  if (host.get("shows") === "watch") return new Watch(el, { page, clips }, host);
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
  return mountAny(el, await inflate(state.data), host);
}

/** The chains of a saved explorer, without drawing it. */
export const chainsOf = async (entry) => new Chains(await inflate((entry.state ? withBuffers(entry) : entry).data));

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

/** The Jupyter server that this page is of: its address, and its folder, below which it sends files. */
function jupyterServer() {
  try {
    const { baseUrl = "", serverRoot = "" } = JSON.parse(document.getElementById("jupyter-config-data").textContent);
    return { files: baseUrl && new URL(`${baseUrl.replace(/\/?$/, "/")}files/`, location.href).href, root: baseUrl && serverRoot };
  } catch {
    return { files: "", root: "" }; // another program's notebook
  }
}

/** anywidget's entry: the same, with a kernel that may be asked. */
async function render({ model, el }) {
  const waiting = new Map();
  const server = jupyterServer();
  let shown = null;
  const answered = (message, buffers) => {
    if (message?.making !== undefined) return shown?.clips.share(message.making, message.share);
    const name = message?.clip === undefined ? `film ${message?.film}` : `clip ${message.clip}`;
    waiting.get(name)?.(message, buffers ?? []);
    waiting.delete(name);
  };
  const request = (kind, key, more, take) =>
    new Promise((resolve) => {
      waiting.set(`${kind} ${key}`, (message, buffers) => resolve(take(message, buffers)));
      try {
        model.send({ ask: kind, key, ...more });
      } catch {
        // Without a kernel nobody answers, and after a while the page says so.
      }
    });
  const ask = (key) => request("clip", key, {}, ({ clip: _, ...clip }, [sheet]) => (sheet ? { ...clip, sheet } : clip));
  const askFilm = (key, whole) =>
    request("film", key, { root: whole ? "" : server.root }, (film, [content]) =>
      film.path ? { src: server.files + film.path, start: film.start, served: true } : { ...film, bytes: content },
    );
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
        // A saved page may be looked at and changed where nobody listens.
      }
    },
    on: (name, listener) => model.on(`change:${name}`, listener),
    off: (name, listener) => model.off(`change:${name}`, listener),
  };
  model.on("msg:custom", answered);
  let latest = 0;
  const draw = async () => {
    const mine = ++latest;
    const next = h("div");
    const page = await inflate(host.get("data"));
    if (mine !== latest) return;
    const used = shown instanceof Explorer ? shown.used : null;
    el.replaceChildren(next);
    const made = mountAny(next, page, host, { ask, askFilm });
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
