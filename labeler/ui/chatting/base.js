// The Chat tab's widget. Runs inside Gradio's gr.HTML with `element` (its root) and `server` (the functions of chat.py).
// The files of this folder are joined in the order that chat.py gives: they share one scope.
//
// What people and models wrote reaches the page by textContent, or as HTML that the server has sanitised. The template
// is static, so nothing here is ever evaluated as a template again.

const root = element.querySelector(".chat");
const LOOK_MS = 150; // between two looks at an answer that is being written
const RETRY_MS = 2000; // after one that the app did not answer

let lists = {}; // conversations, checkpoints, rewards, presets and knobs, as the server sent them last
let shown = null; // the conversation on the page; null: a new one
let looking = 0; // which series of looks is under way; another number ends it

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list" && name !== "min" && name !== "max") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function button(label, onclick, properties = {}) {
  return make("button", { type: "button", onclick, ...properties }, label);
}

function fold(title, id, ...children) {
  return make("details", { id, className: "chat-fold" }, make("summary", {}, title), ...children);
}

function field(label, control, info = "") {
  const hint = make("small", { id: `${control.id}-info` }, info);
  if (info) control.setAttribute("aria-describedby", hint.id);
  return make("div", { className: "chat-field" }, make("label", { htmlFor: control.id }, label), control, info ? hint : "");
}

/** Fill a select with {id, name} pairs and keep what was chosen while it can still be chosen. */
function fill(select, options, chosen = select.value) {
  select.replaceChildren(...options.map(({ id, name }) => make("option", { value: String(id) }, name)));
  select.value = String(chosen);
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}

const part = (selector) => root.querySelector(selector);
const visible = () => element.isConnected && root.offsetParent !== null;

function say(message, kind = "error") {
  const status = part("#chat-status");
  status.textContent = message;
  status.dataset.kind = message ? kind : "";
}

/** What a function of the server answers; null where it refused, which is then said. */
async function call(name, data = {}) {
  try {
    const answer = await server[name](data);
    if (!answer?.error) return answer;
    say(answer.error);
  } catch {
    say("The app does not answer. Is it still running?");
  }
  return null;
}
