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
const LIMIT = 4000;

/** @returns {Promise<any>} result of a request */
function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Rejects with a TimeoutError when a promise takes too long, as while another tab deletes the database. */
function limited(promise, reason = () => "its storage does not answer") {
  const fail = (reject) => setTimeout(() => reject(new DOMException(reason(), "TimeoutError")), LIMIT);
  return Promise.race([promise, new Promise((_, reject) => fail(reject))]);
}

/**
 * @param {() => void} lost called when the connection has ended
 * @returns {Promise<IDBDatabase>}
 */
function connect(lost) {
  const request = indexedDB.open(DATABASE, 1);
  let reason = "its storage does not answer";
  let late = false;
  request.onblocked = () => (reason = "another tab keeps its storage; close that tab");
  request.onupgradeneeded = () => {
    for (const store of ["images", "edits"]) request.result.createObjectStore(store);
  };
  const opened = finished(request).then((database) => {
    if (late) database.close();
    database.onversionchange = () => (database.close(), lost());
    database.onclose = lost;
    return database;
  });
  return limited(opened, () => ((late = true), reason));
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

  /** @returns {Promise<Saved | null>} of this tab, or else of the tab that saved last; rejects after some seconds */
  load() {
    return limited(this.#load());
  }

  async #load() {
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
    write.commit(); // a page that is being left does not wait for answers
    await done;
    await this.#forget(database);
  }

  /** Deletes the oldest records, except those of open tabs. */
  async #forget(database) {
    const { held = [] } = (await navigator.locks?.query()) ?? {};
    const open = new Set(held.map((lock) => lock.name));
    const write = database.transaction(["images", "edits"], "readwrite");
    const keys = await finished(write.objectStore("edits").getAllKeys());
    if (keys.length <= TABS) return;
    const edits = await finished(write.objectStore("edits").getAll());
    const order = keys.map((key, index) => ({ key, saved: edits[index].saved })).sort((one, other) => other.saved - one.saved);
    for (const { key } of order.slice(TABS)) {
      if (key === this.#tab || open.has(`${DATABASE}-${key}`)) continue;
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
    if (this.#database) return this.#database;
    const forget = () => {
      if (this.#database === database) this.#database = null;
    };
    const database = connect(forget);
    database.catch(forget);
    this.#database = database;
    return database;
  }
}
