// What may be said of a single completion in a word: the project's tags, folded away until asked for.

function toggleTag(index, tag) {
  const said = state.tags[index];
  state.tags[index] = said.includes(tag) ? said.filter((other) => other !== tag) : [...said, tag];
  drawTags(index);
  announce(`${tag}: ${state.tags[index].includes(tag) ? "✓" : "–"}`);
  changed();
}

/** Unfold the tags of this card, or fold them. While they are open, numbers pick. */
function toggleTags(index) {
  const open = state.tagging === index;
  closeMenu();
  if (open || !offeredTags(index).length) return;
  mark(index);
  state.tagging = index;
  menu = {
    pick: (number) => offeredTags(index)[number - 1] && toggleTag(index, offeredTags(index)[number - 1]),
    enter: () => closeMenu(true),
    close: () => {
      state.tagging = null;
      drawTags(index);
    },
    key: "t",
  };
  drawTags(index);
}

/** The project's tags, and those that were said before and are not offered any more. */
function offeredTags(index) {
  return [...new Set([...view.project.tags, ...state.tags[index]])];
}

function drawTags(index) {
  const card = cardOf(index);
  const open = state.tagging === index;
  card.querySelector(".tags").ariaExpanded = String(open);
  const list = card.querySelector(".tag-list");
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.tag : null;
  const shown = open ? offeredTags(index) : state.tags[index];
  list.hidden = !shown.length;
  list.replaceChildren(
    ...shown.map((tag, at) => {
      const number = open && at < 9 ? [make("kbd", { ariaHidden: "true" }, String(at + 1))] : [];
      const pressed = state.tags[index].includes(tag);
      const check = make("span", { className: "check", ariaHidden: "true" }, pressed ? "✓ " : "");
      return open
        ? make("button", { type: "button", className: "tag", ariaPressed: String(pressed), dataset: { tag }, onclick: () => toggleTag(index, tag) }, ...number, check, tag)
        : make("span", { className: "tag" }, tag);
    }),
  );
  if (focused !== null) Array.from(list.children).find((chip) => chip.dataset.tag === focused)?.focus();
}
