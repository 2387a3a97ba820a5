// A short list in which one more key says why: for skipping and for flagging.

/** `done(reason)` gets the words; with `optional`, Enter alone gives none. */
function askReason(title, reasons, key, optional, done) {
  const again = menu?.key === key;
  closeMenu();
  if (again) return;
  const finish = (reason) => {
    closeMenu(true);
    done(reason);
  };
  const other = make("input", {
    className: "reason-text",
    maxLength: 500,
    placeholder: TEXTS.otherHint,
    ariaLabel: `${TEXTS.other}: ${TEXTS.otherHint}`,
    hidden: true,
    onkeydown: (pressed) => {
      if (pressed.key !== "Enter" || pressed.isComposing || !other.value.trim()) return;
      pressed.preventDefault();
      pressed.stopPropagation();
      finish(other.value.trim());
    },
  });
  const choices = [...reasons.map((reason) => [reason, () => finish(reason)]), [TEXTS.other, () => ((other.hidden = false), other.focus())]];
  const list = make(
    "div",
    { className: "reasons", role: "group", ariaLabel: title, tabIndex: -1 },
    make("p", {}, title),
    ...choices.map(([name, choose], at) =>
      make("button", { type: "button", onclick: choose }, make("kbd", { ariaHidden: "true" }, String(at + 1)), ` ${name}`),
    ),
    other,
    ...(optional ? [button(TEXTS.noReason, () => finish(""), { className: "no-reason" })] : []),
    button(TEXTS.cancel, () => closeMenu(true), { className: "quiet" }),
  );
  part(".action-buttons").before(list);
  menu = {
    key,
    pick: (number) => choices[number - 1]?.[1](),
    enter: () => optional && finish(""),
    close: () => list.remove(),
  };
  list.focus({ preventScroll: true });
  list.scrollIntoView({ block: "nearest" });
}

const askSkip = () => !correcting() && askReason(TEXTS.skipWhy, TEXTS.skipReasons, "s", true, skip);
const askFlag = () => askReason(TEXTS.flagWhy, TEXTS.flagReasons, "f", false, flag);

/** Close the list that takes keys. `back`: the focus was in it and returns to the marked card. */
function closeMenu(back = false) {
  const closing = menu;
  menu = null;
  closing?.close();
  if (closing && back && state) mark(state.active, true);
}
