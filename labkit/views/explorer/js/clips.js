/** The frames of clips: WebP sprite sheets, decoded on demand; and where their videos are. */

import { bytes, many } from "./core.js";

const KEPT_SHEETS = 8;
// Videos that came as bytes.
const KEPT_FILMS = 2;

/**
 * Sheets by key, decoded when they are needed; the last few stay decoded.
 *
 * `ask(key)` promises the sheet of a clip that is not stored; without it there is nobody to ask. `films` say where the videos lie that
 * came along with a page, and `askFilm(key, whole)` promises that of another.
 */
export class Clips {
  constructor(stored, { ask = null, films = {}, askFilm = null } = {}) {
    Object.assign(this, { stored, ask, films, askFilm });
    this.decoded = new Map();
    this.urls = new Map();
    /** Hears how much of a promised clip is made. */
    this.onShare = () => {};
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

  /** How much of a clip is made that was asked for. */
  share(key, share) {
    this.onShare(this.decoded.get(key), share);
  }

  /** Where the video of a clip is: {src, start}, or null where nobody knows; `whole`: as bytes, since its server failed. */
  async film(key, whole) {
    const film = this.films[key] ?? (await this.askFilm?.(key, whole));
    if (!film || film.why) return null;
    if (!film.bytes) return film;
    if (!this.urls.has(key)) this.urls.set(key, URL.createObjectURL(new Blob([bytes(film.bytes)])));
    for (const [old, url] of this.urls) {
      if (this.urls.size <= KEPT_FILMS) break;
      this.urls.delete(old);
      URL.revokeObjectURL(url);
    }
    return { src: this.urls.get(key), start: film.start };
  }

  close() {
    for (const url of this.urls.values()) URL.revokeObjectURL(url);
    for (const clip of this.decoded.values()) clip.then((each) => each.bitmap.close()).catch(() => {});
    this.decoded.clear();
  }
}
