// The disagreements of the Quality tab. Runs inside gr.HTML with `element`, `props`, `watch` and `server`.
//
// What people wrote reaches the page by textContent; completions are HTML that the server has sanitised.

const root = element.querySelector(".adjudication");
const UNREACHABLE = "The app does not answer. Check that it runs, then try again.";
const LETTERS = "ABCDEFGHI";

let list = null; // {project, tasks, may}
let shown = null; // the case that is open
let ranks = [];
let uuid = "";
let busy = false;

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function newId() {
  // crypto.randomUUID exists in secure contexts only
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function ask(name, data) {
  if (busy) return;
  busy = true;
  root.setAttribute("aria-busy", "true");
  const answer = (await server[name](data).catch(() => null)) ?? { error: UNREACHABLE };
  busy = false;
  root.removeAttribute("aria-busy");
  if (answer.error) return say(answer.error);
  if (answer.tasks) list = answer;
  open(answer.case);
}

function say(text) {
  root.querySelector(".case-problem")?.replaceChildren(text);
}

function open(found) {
  shown = found;
  const final = found.said.find((one) => one.final);
  ranks = final && found.mine ? [...final.ranks] : found.completions.map(() => null);
  uuid = newId();
  draw();
  root.querySelector(".case h3")?.focus({ preventScroll: true });
  root.querySelector(".case")?.scrollIntoView({ block: "nearest" });
}

function draw() {
  const title = make("h2", { textContent: "Disagreements" });
  const problem = make("p", { className: "case-problem notice error", role: "alert" });
  if (!list?.tasks?.length) {
    const empty = "No task that two people ranked differently. Tasks to settle appear here, the least agreement first.";
    root.replaceChildren(...(list?.project ? [title, make("p", { className: "empty", textContent: empty })] : []));
    return;
  }
  const hint = list.may
    ? "The least agreement first. Your final ranking is then the only one that training learns from."
    : "The least agreement first. Leads settle them.";
  const items = list.tasks.map((one) =>
    make("li", {}, make("button", {
      type: "button",
      className: "disagreement",
      textContent:
        `${one.settled ? "✓ settled" : "open"} · task ${one.task} · ${one.people} people · ${one.share}% same votes` +
        (one.tau === null ? "" : ` · tau-b ${one.tau}`),
      "aria-pressed": String(shown?.task === one.task),
      onclick: () => ask("quality_case", { task: one.task }),
    })),
  );
  root.replaceChildren(
    title,
    make("p", { className: "meta", textContent: hint }),
    make("ol", { className: "disagreements" }, ...items),
    problem,
    ...(shown ? [drawCase()] : []),
  );
}

function drawCase() {
  const turns = shown.messages.map((message) =>
    make("p", { className: "case-turn" }, make("b", { textContent: message.role }), ` ${message.text}`),
  );
  const cards = shown.completions.map((html, index) => {
    const text = make("div", { className: "markdown case-text" });
    text.innerHTML = html; // sanitised by markdown.py
    text.tabIndex = 0;
    text.setAttribute("role", "region");
    text.setAttribute("aria-label", `Completion ${LETTERS[index]}`);
    return make("article", { className: "case-card" }, make("h4", { textContent: LETTERS[index] }), text,
      ...(list.may ? [rankButtons(index)] : []));
  });
  return make(
    "div",
    { className: "case" },
    make("h3", { textContent: `Task ${shown.task}`, tabIndex: -1 }),
    ...turns,
    sideBySide(),
    make("div", { className: "case-cards" }, ...cards),
    ...(list.may ? [controls()] : []),
  );
}

function sideBySide() {
  const head = ["Who", ...shown.completions.map((_, index) => LETTERS[index]), "Comment"];
  const rows = shown.said.map((one) =>
    make(
      "tr",
      one.final ? { className: "final" } : {},
      make("th", { scope: "row", textContent: one.final ? `✓ ${one.name}, final` : one.name }),
      ...one.ranks.map((rank) => make("td", { textContent: one.all_bad ? "bad" : (rank ?? "–") })),
      make("td", { className: "long", textContent: one.comment }),
    ),
  );
  const cells = head.map((text) => make("th", { scope: "col", textContent: text }));
  const table = make("table", { className: "quality-table said" }, make("thead", {}, make("tr", {}, ...cells)),
    make("tbody", {}, ...rows));
  return make("div", { className: "table-wrap", tabIndex: 0, role: "region", "aria-label": "Rankings side by side" }, table);
}

function rankButtons(index) {
  const buttons = shown.completions.map((_, at) =>
    make("button", {
      type: "button",
      textContent: String(at + 1),
      "aria-pressed": String(ranks[index] === at + 1),
      "aria-label": `Rank ${at + 1} for ${LETTERS[index]}`,
      onclick: (event) => {
        ranks[index] = ranks[index] === at + 1 ? null : at + 1;
        uuid = newId();
        for (const button of event.target.parentElement.children) {
          button.setAttribute("aria-pressed", String(button.textContent === String(ranks[index])));
        }
      },
    }),
  );
  return make("div", { className: "case-ranks", role: "group", "aria-label": `Final rank of ${LETTERS[index]}` }, ...buttons);
}

function controls() {
  const comment = make("textarea", { rows: 2, "aria-label": "Why (optional)", placeholder: "Why (optional)", maxLength: 10000 });
  const send = (more) => ask("quality_settle", { project: list.project, task: shown.task, uuid, comment: comment.value, ...more });
  const settle = make("button", { type: "button", className: "settle", textContent: "Make this final",
    onclick: () => send({ kind: "adjudicate", ranks }) });
  const bad = make("button", { type: "button", textContent: "All bad",
    onclick: () => send({ kind: "adjudicate", ranks: ranks.map(() => null), all_bad: true }) });
  const back = make("button", { type: "button", textContent: "Take back the final ranking",
    onclick: () => send({ kind: "take back" }) });
  return make("div", { className: "case-controls" }, comment, settle, bad, ...(shown.mine ? [back] : []));
}

watch("value", () => {
  const value = props.value;
  if (!value || typeof value !== "object") return;
  if (value.project !== list?.project) shown = null;
  list = value;
  draw();
});
