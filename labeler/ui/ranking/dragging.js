// Dragging the cards of the Rank tab by mouse, pen and finger: pointer events, so that all three are one.

let drag = null;

function startDrag(down, card) {
  if (down.button !== 0 || busy || drag) return;
  const box = card.getBoundingClientRect();
  const { pointerId: id, clientX: x, clientY: y } = down;
  drag = { card, id, x, y, dx: x - box.left, dy: y - box.top, moving: false };
  listen("addEventListener");
}

function listen(how) {
  window[how]("pointermove", moveDrag);
  window[how]("pointerup", endDrag);
  window[how]("pointercancel", endDrag);
  window[how]("keydown", endDrag, true);
}

function moveDrag(move) {
  if (!drag || move.pointerId !== drag.id) return;
  drag.x2 = move.clientX;
  drag.y2 = move.clientY;
  if (!drag.moving) {
    if (Math.hypot(move.clientX - drag.x, move.clientY - drag.y) < 6) return;
    liftCard();
  }
  move.preventDefault();
  placeCard();
}

/** The card leaves the grid and follows the pointer; an empty place of its size stays behind. */
function liftCard() {
  const { card } = drag;
  const box = card.getBoundingClientRect();
  drag.moving = true;
  drag.place = make("div", { className: "card-place" });
  drag.place.style.height = `${box.height}px`;
  card.before(drag.place);
  card.classList.add("dragging");
  card.style.width = `${box.width}px`;
  card.style.height = `${Math.min(box.height, window.innerHeight * 0.5)}px`;
  root.classList.add("is-dragging");
  drag.dy = Math.min(drag.dy, window.innerHeight * 0.5);
  say(TEXTS.dropHint, "drag");
  drag.frame = requestAnimationFrame(scrollAtEdge);
}

function placeCard() {
  const { card, place, x2, y2, dx, dy } = drag;
  card.style.transform = `translate(${x2 - dx}px, ${y2 - dy}px)`;
  const over = document.elementFromPoint(x2, y2)?.closest(".card"); // not the dragged one: it lets the pointer through
  if (!over || !root.contains(over)) return;
  // the place goes to the far side of the card it was moved onto, once the pointer is past that card's middle
  const box = over.getBoundingClientRect();
  const later = Boolean(place.compareDocumentPosition(over) & Node.DOCUMENT_POSITION_FOLLOWING);
  const sameRow = Math.abs(box.top - place.getBoundingClientRect().top) < 10;
  const past = sameRow ? (x2 - box.left) / box.width : (y2 - box.top) / box.height;
  if (later && past > 0.3) over.after(place);
  else if (!later && past < 0.7) over.before(place);
}

/** Near the top or bottom of the window the page moves along, so that a stack of cards can be crossed. */
function scrollAtEdge() {
  if (!drag?.moving) return;
  const edge = 90;
  const speed = drag.y2 < edge ? drag.y2 - edge : drag.y2 > window.innerHeight - edge ? drag.y2 - window.innerHeight + edge : 0;
  if (speed) {
    window.scrollBy(0, speed / 5);
    placeCard();
  }
  drag.frame = requestAnimationFrame(scrollAtEdge);
}

function endDrag(end) {
  if (!drag || (end.type === "keydown" ? end.key !== "Escape" : end.pointerId !== drag.id)) return;
  listen("removeEventListener");
  const { card, place, moving, frame } = drag;
  drag = null;
  if (!moving) return;
  cancelAnimationFrame(frame);
  const dropped = end.type === "pointerup";
  if (dropped) place.before(card);
  place.remove();
  card.classList.remove("dragging");
  card.style.cssText = "";
  root.classList.remove("is-dragging");
  say("");
  drawState();
  if (!dropped) return;
  const order = cards().map((node) => Number(node.dataset.index));
  if (order.join() !== state.order.join()) reorder(order); // put back where it was: nothing was said
  mark(Number(card.dataset.index), true);
}
