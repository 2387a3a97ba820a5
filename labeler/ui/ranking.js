// The Rank tab's widget. Runs inside Gradio's gr.HTML with `element` (its root) and `server` (the functions of rank.py).
//
// Completions are text of unknown origin: they reach the page by textContent, or as HTML that the server has
// sanitised. The template is static, so nothing here is ever evaluated as a template again.
//
// dragging.js stands before this file in the same scope.
//
// state.ranks[i] belongs to completion i in the order the server sent; state.order is where its card stands.

const root = element.querySelector(".rank");
const DRAFT_DELAY_MS = 250;
const RETRY_MS = 3000;
const UNREACHABLE = "The app does not answer. What you entered is still here; check that it runs, then try again.";
const TOO_FEW = "Rank at least two completions, or mark all of them as bad.";
const COMMAND = /mac|iphone|ipad/i.test(navigator.platform) ? "⌘" : "Ctrl";
const KEYS = [
  [["1", "–", "9"], "give the marked card that rank; equal numbers tie"],
  [["0", "Backspace"], "clear its rank"],
  [["J", "K", "arrows"], "mark the next or the previous card"],
  [["Alt + arrows"], "move the marked card: ranks follow the order"],
  [["X"], "all bad"],
  [["S"], "skip"],
  [["C"], "write a comment; Esc leaves it"],
  [["R"], "show the raw text"],
  [[`${COMMAND} + Enter`], "submit and go on"],
  [[`${COMMAND} + Z`], "take the last one back"],
  [["?"], "show or hide this list"],
];

let view = null; // what the server sent last
let state = null; // what the annotator has entered
let busy = false;
let raw = false;
let draft = { timer: 0, sending: false, dirty: false };

// ---------------------------------------------------------------- small helpers

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

function newId() {
  // crypto.randomUUID exists in secure contexts only, and a lab's http://server:7860 is none
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const part = (selector) => root.querySelector(selector);
const cards = () => Array.from(root.querySelectorAll(".card"));
const cardOf = (index) => part(`.card[data-index="${index}"]`);
const visible = () => element.isConnected && root.offsetParent !== null;
const narrow = () => window.innerWidth <= 720; // as in style.css
const ranked = () => state.ranks.filter((rank) => rank !== null).length;
const plural = (count, word) => `${count.toLocaleString()} ${word}${count === 1 ? "" : "s"}`;

// ---------------------------------------------------------------- talking to the server

async function call(name, data) {
  const answer = await server[name](data).catch(() => undefined);
  return answer === undefined || answer === null ? { error: UNREACHABLE } : answer;
}

/** Ask for the next view and draw it; on an error everything stays as it is and the error is shown. */
async function go(name, data, label) {
  if (busy) return;
  busy = true;
  stopDraft();
  root.setAttribute("aria-busy", "true");
  const button = part(".submit");
  const before = button ? Array.from(button.childNodes) : [];
  if (label) button?.replaceChildren(label);
  const answer = await call(name, data);
  busy = false;
  root.removeAttribute("aria-busy");
  if (answer.error) {
    button?.replaceChildren(...before);
    if (view) {
      say(answer.error, "error");
      changed(false); // the draft was stopped: go on saving it
    } else drawFailure(answer.error);
    return;
  }
  view = answer;
  draw();
}

const load = () => go("rank_next", {});

function submit() {
  if (!view || view.kind !== "task" || busy) return;
  if (ranked() < 2 && !state.allBad) {
    say(TOO_FEW, "error");
    return;
  }
  go("rank_submit", event("submit"), "Saving …");
}

const skip = () => view?.kind === "task" && go("rank_submit", event("skip"));

async function undo() {
  if (!view?.can_undo || busy) return;
  await flushDraft();
  go("rank_undo", { uuid: newId() });
}

function event(kind) {
  return {
    kind,
    uuid: state.uuid,
    assignment: view.assignment,
    ranks: state.ranks,
    all_bad: state.allBad,
    comment: state.comment,
    seconds: Math.round(secondsSpent() * 10) / 10,
    client_time: Date.now() / 1000,
  };
}

function secondsSpent() {
  return (state.spent + (document.hidden ? 0 : performance.now() - state.since)) / 1000;
}

// ---------------------------------------------------------------- drafts

/** The annotator changed something. `fresh`: a new event id, so that a retry after a change is not taken for a repeat. */
function changed(fresh = true) {
  if (fresh) state.uuid = newId();
  draft.dirty = true;
  clearTimeout(draft.timer);
  draft.timer = setTimeout(flushDraft, DRAFT_DELAY_MS);
}

function stopDraft() {
  clearTimeout(draft.timer);
  draft.dirty = false;
}

/** One save at a time, so that an older draft never lands after a newer one. */
async function flushDraft() {
  clearTimeout(draft.timer);
  if (!draft.dirty || draft.sending || view?.kind !== "task") return;
  draft.sending = true;
  draft.dirty = false;
  const assignment = view.assignment;
  const { ranks, allBad, comment, order } = state;
  const answer = await call("rank_draft", { assignment, ranks: [...ranks], all_bad: allBad, comment, order: [...order] });
  draft.sending = false;
  if (view?.assignment !== assignment) return;
  const note = part(".draft-note");
  if (answer.error) {
    draft.dirty = true;
    if (note) note.textContent = "Draft not saved. Trying again …";
    draft.timer = setTimeout(flushDraft, RETRY_MS);
  } else {
    if (note) note.textContent = answer.saved ? "Draft saved" : "";
    if (draft.dirty) draft.timer = setTimeout(flushDraft, DRAFT_DELAY_MS);
  }
}

// ---------------------------------------------------------------- drawing

function draw() {
  draft.dirty = false;
  const { progress } = view;
  const numbers = [];
  if (progress.total) numbers.push(`${progress.done.toLocaleString()} of ${progress.total.toLocaleString()}`, `${progress.today} today`);
  if (progress.skipped) numbers.push(`${progress.skipped} skipped`);
  const bar = make("progress", { value: progress.done, max: Math.max(progress.total, 1) });
  bar.setAttribute("aria-label", "Ranked so far");
  const top = make(
    "div",
    { className: "rank-top" },
    make("p", { className: "progress-text" }, numbers.join(" · ")),
    bar,
    make(
      "div",
      { className: "tools" },
      make("button", { type: "button", className: "quiet undo", disabled: !view.can_undo, onclick: undo }, "Undo"),
      make("button", { type: "button", className: "quiet raw", ariaPressed: String(raw), onclick: toggleRaw }, "Raw text"),
      make("button", { type: "button", className: "quiet keys", ariaExpanded: "false", onclick: toggleKeys }, "Keys"),
    ),
  );
  if (view.kind === "task") drawTask(top);
  else drawEmpty(top);
}

function drawTask(top) {
  const saved = view.draft ?? {};
  const count = view.completions.length;
  state = {
    uuid: newId(),
    ranks: saved.ranks ?? Array(count).fill(null),
    allBad: saved.all_bad ?? false,
    comment: saved.comment ?? "",
    order: saved.order ?? Array.from({ length: count }, (_, index) => index),
    active: 0,
    spent: 0,
    since: performance.now(),
  };
  state.active = state.order[0];
  const roomy = count < 5 && columns() < 4; // a card's buttons fit beside its name
  const list = make("div", { className: roomy ? "cards roomy" : "cards", role: "list" });
  list.style.setProperty("--columns", columns());
  list.style.setProperty("--rows", Math.ceil(count / columns()));
  list.append(...state.order.map(makeCard));
  root.replaceChildren(top, makeKeys(), makePrompt(), list, makeActions());
  drawRanks();
  mark(nextUnranked(state.order[0]) ?? state.order[0], true);
  if (view.draft) part(".draft-note").textContent = "Your draft is back";
  if (root.getBoundingClientRect().top < 0) window.scrollTo(0, narrow() ? root.getBoundingClientRect().top + window.scrollY : 0);
}

/** Wide texts two by two; short ones in a single row. The style sheet takes fewer where the screen is narrow. */
function columns() {
  const count = view.completions.length;
  const longest = Math.max(...view.completions.map((completion) => completion.text.length));
  if (count <= 3) return count;
  if (count === 4) return longest < 240 ? 4 : 2;
  return 3;
}

function makePrompt() {
  const turns = view.messages.map((message) => {
    const text = make("div", { className: "turn-text", dir: "auto" });
    if (message.html === null) text.textContent = message.text;
    else {
      text.classList.add("markdown");
      text.innerHTML = message.html; // sanitised by the server
    }
    if (message.role === "system") {
      return make(
        "details",
        { className: "turn", dataset: { role: "system" } },
        make("summary", { className: "turn-role" }, "System message"),
        text,
      );
    }
    const role = make("div", { className: "turn-role" }, message.role === "user" ? "User" : "Assistant");
    return make("div", { className: "turn", dataset: { role: message.role } }, role, text);
  });
  return make("section", { className: "prompt", ariaLabel: "Prompt", tabIndex: 0 }, ...turns);
}

function makeCard(index) {
  const completion = view.completions[index];
  const name = letter(index);
  const body = make("div", { className: "card-text markdown", dir: "auto" });
  const ranks = make("div", { className: "rank-buttons", role: "group", ariaLabel: `Rank of completion ${name}` });
  for (let rank = 1; rank <= view.completions.length; rank += 1) {
    ranks.append(
      make(
        "button",
        { type: "button", dataset: { rank }, ariaLabel: `Rank ${rank} for completion ${name}`, onclick: () => toggle(index, rank) },
        String(rank),
      ),
    );
  }
  ranks.append(
    make(
      "button",
      { type: "button", className: "clear", ariaLabel: `Clear the rank of completion ${name}`, onclick: () => setRank(index, null) },
      "Clear",
    ),
  );
  const head = make(
    "div",
    { className: "card-head", title: "Drag to put the cards in order" },
    make("span", { className: "grip", ariaHidden: "true" }),
    make("span", { className: "badge" }),
    make("span", { className: "card-name" }, `Completion ${name}`),
  );
  const foot = make("div", { className: "card-foot" }, ranks);
  const card = make("article", { className: "card", role: "listitem", tabIndex: -1, dataset: { index } }, head, body, foot);
  if (completion.cut) foot.before(make("p", { className: "cut" }, "Cut at the length limit"));
  card.addEventListener("focusin", () => mark(index));
  card.addEventListener("pointerdown", () => mark(index));
  head.addEventListener("pointerdown", (down) => startDrag(down, card));
  fill(body, completion);
  return card;
}

function fill(body, completion) {
  body.classList.toggle("as-raw", raw);
  if (!completion.text.trim()) body.replaceChildren(make("p", { className: "nothing" }, "(empty answer)"));
  else if (raw) body.textContent = completion.text;
  else body.innerHTML = completion.html; // sanitised by the server
}

function makeActions() {
  const comment = make("textarea", {
    className: "comment",
    rows: 1,
    maxLength: 10000,
    placeholder: "Comment (optional)",
    ariaLabel: "Comment",
    value: state.comment,
    oninput: () => {
      state.comment = comment.value;
      grow(comment);
      changed();
    },
  });
  requestAnimationFrame(() => grow(comment));
  return make(
    "div",
    { className: "actions" },
    comment,
    make(
      "div",
      { className: "action-buttons" },
      make("div", { className: "rank-notice", role: "alert" }),
      make("span", { className: "draft-note", role: "status" }),
      make("button", { type: "button", className: "skip", onclick: skip }, "Skip"),
      make("button", { type: "button", className: "all-bad", onclick: toggleAllBad }, "All bad"),
      make("button", { type: "button", className: "submit", onclick: submit }, "Submit", make("kbd", {}, `${COMMAND} ↵`)),
    ),
  );
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function makeKeys() {
  const rows = KEYS.map(([keys, meaning]) => {
    const names = keys.flatMap((key) => [key === "–" || key === "arrows" ? key : make("kbd", {}, key), " "]);
    return make("div", {}, make("dt", {}, ...names), make("dd", {}, meaning));
  });
  return make("section", { className: "key-list", ariaLabel: "Keys", hidden: true }, make("dl", {}, ...rows));
}

function drawEmpty(top) {
  state = null;
  const { progress, prompts } = view;
  const lines = [];
  const buttons = [];
  let title = "Everything is ranked";
  const train = !(document.documentElement.dataset.hiddenTabs ?? "").includes("Train"); // set by header.js
  if (progress.done) {
    const next = train ? "Next, train a model on what you said." : "Thank you: there is nothing left to do here.";
    lines.push(`You have ranked ${plural(progress.done, "task")}. ${next}`);
    if (train) buttons.push(make("button", { type: "button", onclick: () => openTab("Train") }, "Go to Train"));
    if (progress.skipped) title = "Everything is ranked but what you skipped";
  } else if (progress.skipped) {
    title = "Nothing left but what you skipped";
  } else {
    title = prompts ? "Nothing to rank right now" : "No prompts yet";
    lines.push(prompts ? "All tasks are taken or done by others." : "Import prompts with completions in the Data tab.");
    if (prompts && train) {
      lines.push("Train a model on what they said, or import more in the Data tab.");
      buttons.push(make("button", { type: "button", onclick: () => openTab("Train") }, "Go to Train"));
    }
    buttons.push(make("button", { type: "button", onclick: () => openTab("Data") }, "Go to Data"));
  }
  if (progress.skipped) {
    buttons.push(
      make(
        "button",
        { type: "button", className: "return-skipped", onclick: () => go("rank_skipped", { uuid: newId() }) },
        `Bring back ${plural(progress.skipped, "skipped task")}`,
      ),
    );
  }
  root.replaceChildren(
    top,
    makeKeys(),
    make(
      "div",
      { className: "rank-empty" },
      make("h2", {}, title),
      ...lines.map((line) => make("p", {}, line)),
      make("div", { className: "rank-notice", role: "alert" }),
      make("div", { className: "empty-buttons" }, ...buttons),
    ),
  );
}

function drawFailure(message) {
  root.replaceChildren(
    make(
      "div",
      { className: "rank-empty" },
      make("p", { className: "rank-notice", role: "alert", dataset: { kind: "error" } }, message),
      make("button", { type: "button", onclick: load }, "Try again"),
    ),
  );
}

function openTab(label) {
  // on a small screen some tabs stand in Gradio's overflow menu; the hidden copies are there to be measured only
  const tabs = Array.from(document.querySelectorAll(".tab-wrapper button")).filter((tab) => !tab.closest("[aria-hidden]"));
  tabs.find((tab) => tab.textContent.trim() === label)?.click();
}

function say(message, kind = "") {
  const notice = part(".rank-notice");
  if (!notice) return;
  notice.textContent = message;
  notice.dataset.kind = kind;
}

const letter = (index) => String.fromCharCode(65 + index);

/** Bring every card in line with state: badge, pressed button, label for screen readers. */
function drawRanks() {
  const counts = new Map();
  for (const rank of state.ranks) counts.set(rank, (counts.get(rank) ?? 0) + 1);
  for (const card of cards()) {
    const index = Number(card.dataset.index);
    const rank = state.ranks[index];
    const tie = rank !== null && counts.get(rank) > 1;
    const badge = card.querySelector(".badge");
    badge.replaceChildren(rank === null ? "–" : String(rank));
    if (tie) badge.append(make("small", {}, "tie"));
    card.dataset.rank = rank ?? "";
    const words = rank === null ? "not ranked" : `rank ${rank}${tie ? ", tied" : ""}`;
    card.setAttribute("aria-label", `Completion ${letter(index)}, ${words}`);
    for (const button of card.querySelectorAll("[data-rank]")) {
      button.ariaPressed = String(Number(button.dataset.rank) === rank);
    }
    card.querySelector(".clear").disabled = rank === null;
  }
  const allBad = part(".all-bad");
  allBad.ariaPressed = String(state.allBad);
  root.classList.toggle("is-all-bad", state.allBad);
  const ready = ranked() >= 2 || state.allBad;
  part(".submit").classList.toggle("ready", ready);
  const notice = part(".rank-notice");
  if (notice.dataset.kind === "error" && ready) say("");
  if (state.allBad) say("All bad: stored as a flag. Nothing is learned from the order of these.", "info");
  else if (notice.dataset.kind === "info") say("");
}

// ---------------------------------------------------------------- what the annotator can do

function setRank(index, rank) {
  if (state.ranks[index] === rank) return;
  state.ranks[index] = rank;
  drawRanks();
  changed();
}

const toggle = (index, rank) => setRank(index, state.ranks[index] === rank ? null : rank);

function toggleAllBad() {
  state.allBad = !state.allBad;
  drawRanks();
  changed();
}

function toggleRaw() {
  raw = !raw;
  part(".raw").ariaPressed = String(raw);
  for (const card of cards()) fill(card.querySelector(".card-text"), view.completions[Number(card.dataset.index)]);
}

function toggleKeys() {
  const list = part(".key-list");
  list.hidden = !list.hidden;
  part(".keys").ariaExpanded = String(!list.hidden);
}

/** Mark a card as the one that digits go to; with `focus`, move the browser's focus there too. */
function mark(index, focus = false) {
  state.active = index;
  for (const card of cards()) card.classList.toggle("active", Number(card.dataset.index) === index);
  if (!focus) return;
  const card = cardOf(index);
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const at = state.order.indexOf(state.active);
  const next = state.order[(at + by + state.order.length) % state.order.length];
  mark(next, true);
}

/** The next card without a rank, in reading order from `index`, itself included; null when all have one. */
function nextUnranked(index) {
  const at = state.order.indexOf(index);
  const from = [...state.order.slice(at), ...state.order.slice(0, at)];
  return from.find((other) => state.ranks[other] === null) ?? null;
}

/** Put the cards into this order and rank them by it. */
function reorder(order) {
  state.order = order;
  order.forEach((index, position) => (state.ranks[index] = position + 1));
  const list = part(".cards");
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  list.append(...order.map(cardOf));
  focused?.focus({ preventScroll: true });
  drawRanks();
  changed();
}

function shift(by) {
  const order = [...state.order];
  const at = order.indexOf(state.active);
  const to = Math.min(Math.max(at + by, 0), order.length - 1);
  order.splice(to, 0, ...order.splice(at, 1));
  reorder(order);
  mark(state.active, true);
}

function onKey(key) {
  if (!element.isConnected) return document.removeEventListener("keydown", onKey);
  if (!visible() || key.isComposing || drag) return;
  const focus = document.activeElement;
  const here = !focus || focus === document.body || root.contains(focus);
  if (!here) return;
  const typing = focus?.matches?.("input, textarea, select, [contenteditable]");
  const command = key.ctrlKey || key.metaKey;
  if (command && key.key === "Enter") submit();
  else if (command && !key.shiftKey && key.key.toLowerCase() === "z" && !typing) undo();
  else if (typing) {
    if (key.key !== "Escape") return;
    mark(state.active, true);
  } else if (command) return;
  else if (key.key === "?") toggleKeys();
  else if (view?.kind !== "task" || busy) return;
  else if (!onTaskKey(key)) return;
  key.preventDefault();
}

/** Returns false where the key means nothing here. */
function onTaskKey(key) {
  const arrows = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  if (key.altKey) {
    if (!(key.key in arrows)) return false;
    shift(arrows[key.key]);
    return true;
  }
  const name = key.key.length === 1 ? key.key.toLowerCase() : key.key;
  if (/^[1-9]$/.test(name)) {
    if (Number(name) > view.completions.length) return false;
    setRank(state.active, Number(name));
    mark(nextUnranked(state.active) ?? state.active, true);
  } else if (name === "0" || name === "Backspace" || name === "Delete") {
    setRank(state.active, null);
  } else if (name === "j" || name in arrows || name === "k") {
    step(name === "j" ? 1 : name === "k" ? -1 : arrows[name]);
  } else if (name === "s") skip();
  else if (name === "x") toggleAllBad();
  else if (name === "r") toggleRaw();
  else if (name === "c") part(".comment").focus();
  else if (name === "Escape" && !part(".key-list").hidden) toggleKeys();
  else return false;
  return true;
}

// ---------------------------------------------------------------- start

document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => {
  if (!state) return;
  if (document.hidden) {
    state.spent += performance.now() - state.since;
    flushDraft();
  } else state.since = performance.now();
});
window.addEventListener("pagehide", flushDraft);
load();
