// The Rank tab's widget. Runs inside Gradio's gr.HTML with `element` (its root) and `server` (the functions of rank.py).
// The files of this folder are joined in the order that rank.py gives: they share one scope.
//
// Completions are text of unknown origin: they reach the page by textContent, or as HTML that the server has
// sanitised. The template is static, so nothing here is ever evaluated as a template again.

const root = element.querySelector(".rank");
const COMMAND = /mac|iphone|ipad/i.test(navigator.platform) ? "⌘" : "Ctrl";
const MAX_RATING = 5;

let view = null; // what the server sent last
let state = null; // what the annotator has entered; lists are in the order in which the server sent the completions
let busy = false;
let raw = false;
let menu = null; // the list that takes the next key, if one is open

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "dataset") Object.assign(node.dataset, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function button(label, onclick, properties = {}) {
  return make("button", { type: "button", onclick, ...properties }, label);
}

function newId() {
  // crypto.randomUUID exists in secure contexts only, and a lab's http://server:7860 is none
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const part = (selector) => root.querySelector(selector);
const cards = () => Array.from(root.querySelectorAll(".card"));
const cardOf = (index) => part(`.card[data-index="${index}"]`);
const visible = () => element.isConnected && root.offsetParent !== null;
const narrow = () => window.innerWidth <= 720; // as in panels.css
const letter = (index) => String.fromCharCode(65 + index);
const onTask = () => view?.kind === "task";
const correcting = () => view?.said_at !== undefined;

/** ranking, pairwise or ratings; a pairwise project may hold tasks of more than two, which are ranked. */
function question() {
  const asked = view?.project?.question ?? "ranking";
  return asked === "pairwise" && view.kind === "task" && view.completions.length !== 2 ? "ranking" : asked;
}

/** How many completions something was said of. */
function answered() {
  const said = question() === "ratings" ? state.ratings : state.ranks;
  return said.filter((value) => value !== null).length;
}

// ---------------------------------------------------------------- what is said beside the controls

function say(message, kind = "") {
  const notice = part(".rank-notice");
  if (!notice) return;
  notice.textContent = message;
  notice.dataset.kind = kind;
}

// for screen readers: what a key did; it outlives the drawing of a task
const live = make("p", { className: "rank-live", role: "status" });

const announce = (message) => (live.textContent = message);

// ---------------------------------------------------------------- what this browser remembers

/** Storage may be switched off; then nothing is remembered. */
function remember(storage, key, value) {
  try {
    storage().setItem(`preference-loop/${key}`, JSON.stringify(value));
  } catch {}
}

function recall(storage, key) {
  try {
    return JSON.parse(storage().getItem(`preference-loop/${key}`));
  } catch {
    return null;
  }
}

const device = () => window.localStorage;
const session = () => window.sessionStorage;
