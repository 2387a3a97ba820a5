// Talking to the server: submit, skip, flag, undo, drafts, and the sign that somebody is still here.

const DRAFT_DELAY_MS = 250;
const RETRY_MS = 3000;
const HEARTBEAT_MS = 60_000;
const AHEAD_DELAY_MS = 100;

let draft = { timer: 0, sending: false, dirty: false };

async function call(name, data) {
  const answer = await server[name](data).catch(() => undefined);
  return answer === undefined || answer === null ? { error: TEXTS.unreachable } : answer;
}

/** Ask for the next view and draw it; on an error everything stays as it is and the error is shown.
 *  `done` is called with the new view before it is drawn. */
async function go(name, data, { label, done } = {}) {
  if (busy) return;
  busy = true;
  closeMenu();
  stopDraft();
  root.setAttribute("aria-busy", "true");
  const submitButton = part(".submit");
  const before = submitButton ? Array.from(submitButton.childNodes) : [];
  if (label) submitButton?.replaceChildren(label);
  const answer = await call(name, { project: view?.project?.id ?? recall(device, "project"), ...data });
  busy = false;
  root.removeAttribute("aria-busy");
  if (answer.error) {
    submitButton?.replaceChildren(...before);
    if (view) {
      say(answer.error, "error");
      if (onTask()) changed(false); // the draft was stopped: go on saving it
    } else drawFailure(answer.error);
    return;
  }
  view = answer;
  done?.(answer);
  draw();
}

const load = () => go("rank_next", {});

function submit() {
  if (!onTask() || busy) return;
  if (answered() < 2 && !state.allBad) return say(TEXTS.tooFew[question()], "error");
  const sent = event("submit");
  const done = correcting() ? undefined : () => countLabel(sent.assignment, sent.seconds);
  go("rank_submit", sent, { label: TEXTS.saving, done });
}

const skip = (reason) => onTask() && !correcting() && go("rank_submit", { ...event("skip"), reason });

/** The task stays: a flag is for whoever leads the project. */
async function flag(reason) {
  const sent = { ...event("flag"), uuid: newId(), reason };
  const answer = await call("rank_flag", sent);
  say(answer.error ?? TEXTS.flagged(reason), answer.error ? "error" : "flag");
}

async function undo() {
  if (!view?.can_undo || busy) return;
  await flushDraft();
  go("rank_undo", { uuid: newId() }, { done: (next) => forgetLabel(next.assignment) });
}

async function openLabel(assignment) {
  await flushDraft();
  if (narrow()) panel = null; // it stands above the task there
  go("rank_open", { assignment });
}

async function chooseProject(id) {
  await flushDraft();
  remember(device, "project", id);
  go("rank_next", { project: id });
}

function event(kind) {
  return {
    ...said(),
    kind,
    uuid: state.uuid,
    assignment: view.assignment,
    guidelines_version: view.project.guidelines_version,
    seconds: Math.round(secondsSpent() * 10) / 10,
    client_time: Date.now() / 1000,
  };
}

/** What the annotator has said so far, as rankings.Event and a draft have it. */
function said() {
  const { ranks, ratings, tags, strength, allBad, comment, order } = state;
  return {
    ranks: [...ranks],
    ratings: ratings.some((rating) => rating !== null) ? [...ratings] : [],
    tags: tags.some((words) => words.length) ? tags.map((words) => [...words]) : [],
    strength,
    all_bad: allBad,
    comment,
    rewrite: rewritten(),
    order: [...order],
  };
}

function secondsSpent() {
  return (state.spent + (document.hidden ? 0 : performance.now() - state.since)) / 1000;
}

// ---------------------------------------------------------------- drafts

/** The annotator changed something. `fresh`: a new event id, so that a retry after a change is not taken for a repeat. */
function changed(fresh = true) {
  if (fresh) state.uuid = newId();
  if (correcting()) return; // what was submitted stands until the change is submitted
  draft.dirty = true;
  note(TEXTS.draftSaving);
  clearTimeout(draft.timer);
  draft.timer = setTimeout(flushDraft, DRAFT_DELAY_MS);
}

const note = (message) => part(".draft-note")?.replaceChildren(message);

function stopDraft() {
  clearTimeout(draft.timer);
  draft.dirty = false;
}

/** One save at a time, so that an older draft never lands after a newer one. */
async function flushDraft() {
  clearTimeout(draft.timer);
  if (!draft.dirty || draft.sending || !onTask()) return;
  draft.sending = true;
  draft.dirty = false;
  const assignment = view.assignment;
  const answer = await call("rank_draft", { assignment, ...said() });
  draft.sending = false;
  if (view?.assignment !== assignment) return;
  if (answer.error) {
    draft.dirty = true;
    note(TEXTS.draftFailed);
    announce(TEXTS.draftFailed);
    draft.timer = setTimeout(flushDraft, RETRY_MS);
  } else {
    if (!draft.dirty) note(answer.saved ? TEXTS.draftSaved : "");
    else draft.timer = setTimeout(flushDraft, DRAFT_DELAY_MS);
  }
}

/** While the page is looked at, the task is not given to anybody else. */
async function beat() {
  if (!element.isConnected) return clearInterval(heart);
  if (document.hidden || !visible() || !onTask() || correcting() || busy) return;
  const { assignment } = view;
  const answer = await call("rank_heartbeat", { assignment });
  if (answer.open === false && view?.assignment === assignment && !busy) say(TEXTS.lost, "error");
}

const heart = setInterval(beat, HEARTBEAT_MS);

/** While this task is read, the server renders the one that probably comes next. Which one comes is said at submit. */
function readAhead() {
  const { assignment } = view;
  setTimeout(() => onTask() && view.assignment === assignment && !busy && call("rank_ahead", { assignment }), AHEAD_DELAY_MS);
}

// ---------------------------------------------------------------- this session, in this browser tab

function countLabel(assignment, seconds) {
  remember(session, "session", { ...recall(session, "session"), [assignment]: seconds });
}

function forgetLabel(assignment) {
  const { [assignment]: _, ...rest } = recall(session, "session") ?? {};
  remember(session, "session", rest);
}

/** How many, and the median of seconds for one; null before the first. */
function sessionSoFar() {
  const times = Object.values(recall(session, "session") ?? {}).sort((a, b) => a - b);
  const middle = times.length / 2;
  if (!times.length) return null;
  return { count: times.length, median: (times[Math.ceil(middle) - 1] + times[Math.floor(middle)]) / 2 };
}
