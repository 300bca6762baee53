/** The state of the editor in IndexedDB: one record a tab, so that tabs do not overwrite each other. */

/** @typedef {import("./mask.js").Packed} Packed */

/**
 * @typedef {object} Saved
 * @property {{blob: Blob, view: Blob | null, name: string}} image `view`: in a format of the browser, if blob is not
 * @property {{width: number, height: number, tiles: Packed[], extend: number[]}} edit
 */

const DATABASE = "rad-studio";
const KEY = "rad-studio-tab";
const TABS = 8;
const PATIENCE = 400;

/** @returns {Promise<any>} result of a request */
function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** @returns {Promise<IDBDatabase>} */
function connect() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => {
    for (const store of ["images", "edits"]) request.result.createObjectStore(store);
  };
  return finished(request);
}

/**
 * Holds a lock on a tab's record as long as the tab lives.
 * @param {string} tab
 * @returns {Promise<boolean>} false: a duplicate of the tab holds it
 */
function hold(tab) {
  if (!navigator.locks) return Promise.resolve(true);
  const attempt = (options) =>
    new Promise((resolve) => {
      const release = new Promise(() => {});
      const granted = (lock) => (resolve(lock !== null), lock ? release : undefined);
      navigator.locks.request(`${DATABASE}-${tab}`, options, granted).catch(() => resolve(false));
    });
  // A page that is being reloaded releases its lock a little later.
  return attempt({ signal: AbortSignal.timeout(PATIENCE) });
}

export class Storage {
  /** @type {Promise<IDBDatabase> | null} */ #database = null;
  #tab = "";
  /** @type {Promise<unknown>} */ #last = Promise.resolve();

  /** @returns {Promise<Saved | null>} of this tab, or else of the tab that saved last */
  async load() {
    const database = await this.#connect();
    const before = sessionStorage.getItem(KEY) ?? "";
    if (before && (await hold(before))) this.#tab = before;
    else await this.#newTab();
    const read = database.transaction(["images", "edits"]);
    const keys = await finished(read.objectStore("edits").getAllKeys());
    const edits = await finished(read.objectStore("edits").getAll());
    const latest = keys.reduce((best, _, index) => (edits[index].saved > (edits[best]?.saved ?? -1) ? index : best), 0);
    const index = keys.includes(before) ? keys.indexOf(before) : latest;
    if (!keys.length) return null;
    const image = await finished(database.transaction("images").objectStore("images").get(keys[index]));
    return image ? { image, edit: edits[index] } : null;
  }

  /**
   * Saves the edit, and the image where given. Writes follow each other in order.
   * @param {Saved["edit"]} edit
   * @param {Saved["image"] | null} image null: as saved before
   */
  save(edit, image) {
    this.#last = this.#last.catch(() => {}).then(() => this.#write(edit, image));
    return this.#last;
  }

  async #write(edit, image) {
    const database = await this.#connect();
    if (!this.#tab) await this.#newTab();
    const write = database.transaction(["images", "edits"], "readwrite");
    const done = new Promise((resolve, reject) => {
      write.oncomplete = resolve;
      write.onerror = write.onabort = () => reject(write.error);
    });
    if (image) write.objectStore("images").put(image, this.#tab);
    write.objectStore("edits").put({ ...edit, saved: Date.now() }, this.#tab);
    await done;
    await this.#forget(database);
  }

  /** Deletes the records of all but the last tabs. */
  async #forget(database) {
    const write = database.transaction(["images", "edits"], "readwrite");
    const keys = await finished(write.objectStore("edits").getAllKeys());
    if (keys.length <= TABS) return;
    const edits = await finished(write.objectStore("edits").getAll());
    const order = keys.map((key, index) => ({ key, saved: edits[index].saved })).sort((one, other) => other.saved - one.saved);
    for (const { key } of order.slice(TABS)) {
      if (key === this.#tab) continue;
      write.objectStore("images").delete(key);
      write.objectStore("edits").delete(key);
    }
  }

  async #newTab() {
    this.#tab = `${Date.now().toString(36)}-${Array.from(crypto.getRandomValues(new Uint32Array(2))).join("-")}`;
    sessionStorage.setItem(KEY, this.#tab);
    await hold(this.#tab);
  }

  #connect() {
    this.#database ??= connect();
    return this.#database;
  }
}
