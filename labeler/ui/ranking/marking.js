// What can be done to the cards: mark one, say something of it, put them in order.

function setRank(index, rank) {
  if (state.ranks[index] === rank) return;
  state.ranks[index] = rank;
  saidOf(index);
}

function setRating(index, rating) {
  if (state.ratings[index] === rating) return;
  state.ratings[index] = rating;
  saidOf(index);
}

function saidOf(index) {
  drawState();
  announce(cardOf(index).getAttribute("aria-label"));
  changed();
}

/** What a digit says of a card: its rating where the project asks for one, else its rank. */
const give = (index, number) => (question() === "ratings" ? setRating : setRank)(index, number);
const given = (index) => (question() === "ratings" ? state.ratings : state.ranks)[index];
const toggle = (index, number) => give(index, given(index) === number ? null : number);
const highest = () => (question() === "ratings" ? MAX_RATING : view.completions.length);

function toggleAllBad() {
  state.allBad = !state.allBad;
  drawState();
  changed();
}

function toggleRaw() {
  raw = !raw;
  part(".raw").ariaPressed = String(raw);
  for (const index of state.order) fill(index);
}

/** Mark a card as the one that keys go to; with `focus`, move the browser's focus there too. */
function mark(index, focus = false) {
  state.active = index;
  if (state.tagging !== null && state.tagging !== index) closeMenu();
  for (const card of cards()) card.classList.toggle("active", Number(card.dataset.index) === index);
  if (!focus) return;
  const card = cardOf(index);
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
}

function step(by) {
  const at = state.order.indexOf(state.active);
  mark(state.order[(at + by + state.order.length) % state.order.length], true);
}

/** The next card of which nothing was said, in reading order from `index`, itself included; null when there is none. */
function nextUnanswered(index) {
  const at = state.order.indexOf(index);
  const from = [...state.order.slice(at), ...state.order.slice(0, at)];
  return from.find((other) => given(other) === null) ?? null;
}

/** The card with the best rank or rating; of several the one that stands first; null when nothing was said. */
function bestCard() {
  const worth = (index) => (question() === "ratings" ? -(state.ratings[index] ?? -Infinity) : (state.ranks[index] ?? Infinity));
  const best = state.order.reduce((found, index) => (worth(index) < worth(found) ? index : found));
  return worth(best) === Infinity ? null : best;
}

/** Put the cards into this order and rank them by it. */
function reorder(order) {
  state.order = order;
  order.forEach((index, position) => (state.ranks[index] = position + 1));
  const list = part(".cards");
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  list.append(...order.map(cardOf));
  focused?.focus({ preventScroll: true });
  drawState();
  changed();
}

function shift(by) {
  const order = [...state.order];
  const at = order.indexOf(state.active);
  const to = Math.min(Math.max(at + by, 0), order.length - 1);
  order.splice(to, 0, ...order.splice(at, 1));
  reorder(order);
  mark(state.active, true);
  announce(cardOf(state.active).getAttribute("aria-label"));
}
