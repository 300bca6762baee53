/** Entry of the page. */

import { Editor } from "./editor/editor.js";
import { Notices } from "./panel/notices.js";
import { Panel } from "./panel/panel.js";
import { themeButton } from "./panel/theme.js";

const element = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
const kind = document.querySelector('meta[name="rad-backend"]')?.getAttribute("content");
const { Backend } = await import(kind === "browser" ? "./backend/browser.js" : "./backend/http.js");

const notices = new Notices(element("notices"), element("live"));
element("tools").append(themeButton());
const backend = new Backend();
backend.addEventListener("offline", () => notices.setOnline(false));
backend.addEventListener("online", () => notices.setOnline(true));
const editor = new Editor(element("editor"));

try {
  await new Panel(editor, backend, notices, await notices.insist(() => backend.info())).start();
  document.body.dataset.ready = "true";
} catch (error) {
  notices.show(error.message);
}
