// The cards: a completion's text, what was said of it, and what else can be.

function makeCard(index) {
  const completion = view.completions[index];
  const name = letter(index);
  const draggable = question() === "ranking";
  const head = make(
    "div",
    { className: "card-head", title: draggable ? TEXTS.dragHint : "" },
    ...(draggable ? [make("span", { className: "grip", ariaHidden: "true" })] : []),
    make("span", { className: "badge" }),
    make("h3", { className: "card-name" }, TEXTS.completion(name)),
  );
  const body = make("div", { className: "card-text", role: "group", ariaLabel: TEXTS.textOf(name) });
  const tools = make("div", { className: "card-tools" });
  if (completion.cut) tools.append(make("p", { className: "cut" }, TEXTS.cut));
  if (view.project.tags.length || state.tags[index].length) {
    tools.append(
      button(TEXTS.tags, () => toggleTags(index), { className: "quiet tags", ariaExpanded: "false", ariaLabel: TEXTS.tagsButton(name) }),
    );
  }
  tools.append(
    button(TEXTS.differences, () => toggleDifferences(index), {
      className: "quiet differences",
      ariaPressed: "false",
      ariaLabel: TEXTS.differencesButton(name),
    }),
  );
  const card = make(
    "div",
    { className: "card", role: "listitem", tabIndex: -1, dataset: { index } },
    head,
    body,
    tools,
    make("div", { className: "tag-list", role: "group", ariaLabel: TEXTS.tagsButton(name), hidden: true }),
  );
  if (question() !== "pairwise") card.append(make("div", { className: "card-foot" }, makeNumbers(index)));
  card.classList.toggle("draggable", draggable);
  card.addEventListener("focusin", () => mark(index));
  card.addEventListener("pointerdown", () => mark(index));
  if (draggable) head.addEventListener("pointerdown", (down) => startDrag(down, card));
  return card;
}

/** 1 to K, or 1 to 5 where completions are rated. */
function makeNumbers(index) {
  const name = letter(index);
  const rating = question() === "ratings";
  const numbers = Array.from({ length: highest() }, (_, at) => {
    const number = at + 1;
    const label = rating ? TEXTS.rateButton(number, name) : TEXTS.rankButton(number, name);
    return button(String(number), () => toggle(index, number), { dataset: { rank: number }, ariaLabel: label });
  });
  const label = rating ? TEXTS.rateGroup(name) : TEXTS.rankGroup(name);
  const clear = button(TEXTS.clear, () => give(index, null), { className: "clear", ariaLabel: TEXTS.clearButton(name) });
  return make("div", { className: "rank-buttons", role: "group", ariaLabel: label }, ...numbers, clear);
}

/** Put the text into a card: as Markdown, raw, or compared with another one. */
function fill(index) {
  const completion = view.completions[index];
  const body = cardOf(index).querySelector(".card-text");
  const compared = state.differences?.index === index;
  body.classList.toggle("as-raw", raw && !compared);
  body.dir = raw ? "ltr" : "auto";
  if (compared) body.replaceChildren(...drawDifferences(state.differences.other, index));
  else if (!completion.text.trim()) body.replaceChildren(make("p", { className: "nothing" }, TEXTS.emptyAnswer));
  else if (raw) body.replaceChildren(make("div", { dir: "auto", textContent: completion.text }));
  else {
    const markdown = make("div", { className: "markdown", dir: "auto" });
    markdown.innerHTML = completion.html; // sanitised by the server
    body.replaceChildren(markdown);
  }
}

/** Texts that scroll must be reached by Tab; the others need not be. */
const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollHeight > target.clientHeight + 1) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});

/** Bring the page in line with what was said: badges, pressed buttons, labels for screen readers, the submit button. */
function drawState() {
  const counts = new Map();
  for (const rank of state.ranks) counts.set(rank, (counts.get(rank) ?? 0) + 1);
  for (const card of cards()) drawCard(card, counts);
  if (question() === "pairwise") drawScale();
  part(".all-bad").ariaPressed = String(state.allBad);
  root.classList.toggle("is-all-bad", state.allBad);
  const ready = answered() >= 2 || state.allBad;
  part(".submit").classList.toggle("ready", ready);
  const { kind } = part(".rank-notice").dataset;
  if (kind === "error" && ready) say("");
  if (state.allBad) say(TEXTS.allBadNote, "info");
  else if (kind === "info") say("");
}

function drawCard(card, counts) {
  const index = Number(card.dataset.index);
  const number = given(index);
  const tie = question() !== "ratings" && number !== null && counts.get(number) > 1;
  const badge = card.querySelector(".badge");
  let words = number === null ? TEXTS.said.none : TEXTS.said.rank(number, tie);
  if (question() === "pairwise") {
    words = number === null ? TEXTS.said.none : tie ? TEXTS.tie : number === 1 ? stepName(scaleStep()) : "";
    badge.replaceChildren(number === null ? "–" : tie ? TEXTS.tie : number === 1 ? TEXTS.better : "–");
  } else if (question() === "ratings") {
    words = number === null ? TEXTS.said.unrated : TEXTS.said.rating(number);
    badge.replaceChildren(number === null ? "–" : String(number), make("small", {}, number === null ? "" : `/${MAX_RATING}`));
  } else {
    badge.replaceChildren(number === null ? "–" : String(number));
    if (tie) badge.append(" ", make("small", {}, TEXTS.tie));
  }
  const best = question() === "ratings" ? number === MAX_RATING : number === 1;
  card.classList.toggle("answered", badge.textContent !== "–");
  card.classList.toggle("best", best && !(question() === "pairwise" && tie));
  card.setAttribute("aria-label", `${TEXTS.completion(letter(index))}${words ? `, ${words}` : ""}`);
  for (const choice of card.querySelectorAll("[data-rank]")) choice.ariaPressed = String(Number(choice.dataset.rank) === number);
  const clear = card.querySelector(".clear");
  if (clear) clear.disabled = number === null;
}
