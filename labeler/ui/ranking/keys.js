// The keys, and the start. Single keys are off while something is typed, and with Ctrl, Alt or Meta.

const ARROWS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

const COMMANDS = {
  s: () => askSkip(),
  x: () => toggleAllBad(),
  f: () => askFlag(),
  e: () => startRewrite(),
  t: () => toggleTags(state.active),
  d: () => toggleDifferences(state.active),
  r: () => toggleRaw(),
  c: () => part(".comment").focus(),
};

function onKey(key) {
  if (!element.isConnected) return document.removeEventListener("keydown", onKey);
  if (!visible() || key.isComposing || drag) return;
  const focus = document.activeElement;
  const here = !focus || focus === document.body || root.contains(focus);
  if (!here) return;
  const typing = focus?.matches?.("input, textarea, select, [contenteditable]");
  const command = key.ctrlKey || key.metaKey;
  const name = key.key.length === 1 ? key.key.toLowerCase() : key.key;
  if (command && !key.altKey && name === "Enter") submit();
  else if (command && !key.altKey && !key.shiftKey && name === "z" && !typing) undo();
  else if (command) return;
  else if (name === "Escape") {
    if (!onEscape(typing)) return;
  } else if (typing || busy || (focus?.closest?.(".side") && name in ARROWS)) return; // arrows scroll the panel
  else if (menu && !key.altKey) {
    if (!onMenuKey(name, focus)) return;
  } else if (!key.altKey && name === "?") togglePanel("keys");
  else if (!key.altKey && view?.project && (name === "g" || name === "h")) togglePanel(name === "g" ? "guidelines" : "history");
  else if (!onTask() || !(key.altKey ? onAltKey(name) : onTaskKey(name))) return;
  key.preventDefault();
}

/** From the inside out: leave a field, close a list, close the panel, leave a change. */
function onEscape(typing) {
  if (menu) closeMenu(true);
  else if (typing && state) {
    if (!state.rewrite || !rewritten()) showRewrite(false);
    mark(state.active, true);
  }
  else if (panel) togglePanel(panel);
  else if (correcting()) load();
  else return false;
  return true;
}

/** A list is open: numbers pick, Enter takes what it offers without one, the key that opened it closes it. */
function onMenuKey(name, focus) {
  if (/^[1-9]$/.test(name)) menu.pick(Number(name));
  else if (name === menu.key) closeMenu(true);
  else if (name === "Enter" && focus?.tagName !== "BUTTON") menu.enter();
  else if (state.tagging !== null) return onTaskKey(name); // tags leave the other keys alone
  else return name.length === 1 && name !== " ";
  return true;
}

function onAltKey(name) {
  if (question() !== "ranking" || !(name in ARROWS)) return false;
  shift(ARROWS[name]);
  return true;
}

/** Returns false where the key means nothing here. */
function onTaskKey(name) {
  const pairwise = question() === "pairwise";
  if (/^[1-9]$/.test(name)) {
    if (pairwise) setStep(Number(name));
    else if (Number(name) > highest()) return false;
    else {
      give(state.active, Number(name));
      mark(nextUnanswered(state.active) ?? state.active, true);
    }
  } else if (name === "0" || name === "Backspace" || name === "Delete") {
    if (pairwise) setStep(null);
    else give(state.active, null);
  } else if (pairwise && (name === "ArrowLeft" || name === "ArrowRight")) moveStep(ARROWS[name]);
  else if (name === "j" || name === "k" || name in ARROWS) step(name === "j" ? 1 : name === "k" ? -1 : ARROWS[name]);
  else if (name in COMMANDS) COMMANDS[name]();
  else return false;
  return true;
}

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
