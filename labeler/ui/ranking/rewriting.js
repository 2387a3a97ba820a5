// "Here is a better answer": begins as the best one, and becomes a demonstration if anything was changed.

function startRewrite() {
  const panel = part(".rewrite-panel");
  const area = panel.querySelector("textarea");
  if (panel.hidden) {
    const source = bestCard() ?? state.active;
    state.rewriteFrom = view.completions[source].text;
    area.value = state.rewriteFrom;
    panel.querySelector(".rewrite-hint").textContent = TEXTS.rewriteHint(letter(source));
    showRewrite(true);
  }
  area.focus();
}

function showRewrite(shown) {
  const panel = part(".rewrite-panel");
  panel.hidden = !shown;
  part(".rewrite").ariaExpanded = String(shown);
  if (shown) grow(panel.querySelector("textarea"));
}

function dropRewrite() {
  state.rewrite = "";
  showRewrite(false);
  mark(state.active, true);
  changed();
}

/** What was written, or nothing where it still is the answer it began as. */
const rewritten = () => (state.rewrite.trim() === state.rewriteFrom.trim() ? "" : state.rewrite);

function makeRewrite() {
  const area = make("textarea", {
    dir: "auto",
    maxLength: 50_000,
    ariaLabel: TEXTS.rewriteTitle,
    value: state.rewrite,
    oninput: () => {
      state.rewrite = area.value;
      grow(area);
      changed();
    },
  });
  return make(
    "section",
    { className: "rewrite-panel", ariaLabel: TEXTS.rewriteTitle, hidden: !state.rewrite },
    make("h3", {}, TEXTS.rewriteTitle),
    make("p", { className: "rewrite-hint" }),
    area,
    button(TEXTS.rewriteDrop, dropRewrite, { className: "quiet" }),
  );
}

/** As high as its text. */
function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}
