/** The banner for a server that does not answer, and messages. */

import { button, h } from "./dom.js";
import { sentence } from "./words.js";

const RETRY = 1500;
const UNAVAILABLE = [429, 502, 503, 504];

/** Messages of the page. */
export class Notices {
  /**
   * @param {HTMLElement} element
   * @param {HTMLElement} live - polite region for screen readers
   */
  constructor(element, live) {
    this.live = live;
    this.offline = h("div.notice.offline", { role: "alert", hidden: true },
      "The server does not answer; your image and mask are kept in this browser. Trying again ...");
    this.list = h("div.messages");
    element.append(this.offline, this.list);
  }

  /** @param {boolean} online */
  setOnline(online) {
    if (online && !this.offline.hidden) this.say("The server answers again.");
    this.offline.hidden = online;
  }

  /**
   * Repeat a request until the server answers it; the banner is shown meanwhile.
   * @template T
   * @param {() => Promise<T>} ask
   * @returns {Promise<T>} rejects when the server refuses the request
   */
  async insist(ask) {
    for (let failures = 0; ; failures++) {
      try {
        const answer = await ask();
        if (failures) this.setOnline(true);
        return answer;
      } catch (error) {
        if (error.status && !UNAVAILABLE.includes(error.status)) throw error;
        this.setOnline(false);
        await new Promise((resolve) => setTimeout(resolve, RETRY));
      }
    }
  }

  /**
   * Show a message until it is closed, or for some seconds.
   * @param {string} text
   * @param {{error?: boolean}} [options]
   */
  show(text, { error = true } = {}) {
    text = sentence(text);
    for (const old of this.list.children) if (old.firstChild.textContent === text) old.remove();
    const notice = h("div.notice", { role: error ? "alert" : "status", class: `notice ${error ? "error" : "info"}` },
      h("span", {}, text), button("", () => notice.remove(), { icon: "close", look: "icon quiet", label: "Close this message" }));
    this.list.append(notice);
    while (this.list.children.length > 3) this.list.firstChild.remove();
    if (!error) setTimeout(() => notice.remove(), 6000);
  }

  /** Take away all messages. */
  clear() {
    this.list.replaceChildren();
  }

  /** @param {string} text - for screen readers only */
  say(text) {
    this.live.textContent = text;
  }
}
