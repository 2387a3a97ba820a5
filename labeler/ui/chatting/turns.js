// The conversation: its turns, and what can be done to each of them.

function drawTurns() {
  const log = part("#chat-log");
  const turns = shown?.turns ?? [];
  if (!turns.length) {
    log.replaceChildren(make("p", { className: "empty" }, "Choose a checkpoint above and say something."));
    return;
  }
  const last = turns[turns.length - 1];
  // an edit that has been begun outlives the end of an answer
  const typed = log.querySelector(".editing textarea");
  const edited = typed && turns.find(({ id }) => id === Number(typed.closest("[data-turn]").dataset.turn));
  log.replaceChildren(...turns.map((turn) => drawTurn(turn, turn === last)));
  log.scrollTop = log.scrollHeight;
  if (edited) editTurn({ ...edited, text: typed.value }, part(`[data-turn="${edited.id}"]`));
}

function stopEditing(node) {
  node.classList.remove("editing");
  drawTurns();
}

function drawTurn(turn, isLast) {
  const mine = turn.role === "user";
  const body = make("div", { className: "markdown", dir: "auto" });
  body.innerHTML = turn.html; // sanitised by the server
  const node = make(
    "article",
    { className: `message ${mine ? "user" : "bot"}`, "aria-label": mine ? "You" : "The model", "data-turn": turn.id },
    body,
  );
  if (!mine) node.append(make("p", { className: "facts" }, factsOf(turn)));
  if (turn.live) node.setAttribute("aria-busy", "true");
  else node.append(actionsOf(turn, node, isLast));
  return node;
}

function factsOf(turn) {
  const score = turn.scores?.[part("#chat-reward").value];
  return [...turn.facts, ...(score === undefined ? [] : [`score ${score.toFixed(2)}`]), ...(turn.said ?? [])].join(" · ");
}

/** The answer that is being written has grown: only its own text is drawn. */
function drawLive(turn) {
  const node = part(`[data-turn="${turn.id}"]`);
  if (!node) return; // another branch is on the page
  const log = part("#chat-log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  node.querySelector(".markdown").innerHTML = turn.html; // sanitised by the server
  node.querySelector(".facts").textContent = factsOf(turn);
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function actionsOf(turn, node, isLast) {
  const bar = make("div", { className: "turn-actions" });
  if (turn.versions.length > 1) bar.append(...pager(turn));
  if (turn.role === "user") {
    bar.append(button("Edit", () => editTurn(turn, node)));
    if (isLast) bar.append(button("Answer", () => act("chat_again", { turn_id: turn.id, settings: settings() })));
  } else {
    bar.append(button("Regenerate", () => act("chat_again", { turn_id: turn.id, settings: settings() })));
    if (turn.versions.length > 1) bar.append(preference(turn));
  }
  bar.append(button("Copy", () => copy(turn.text)));
  return bar;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text); // missing where the page is not served securely
    say("Copied.", "info");
  } catch {
    say("The browser does not allow copying here. Select the text instead.");
  }
}

function pager(turn) {
  const place = turn.versions.indexOf(turn.id);
  const step = (label, sign, by) => {
    const there = turn.versions[place + by];
    const go = () => act("chat_choose", { turn_id: there });
    return button(sign, go, { disabled: there === undefined, "aria-label": label, title: label });
  };
  return [
    step("Version before", "‹", -1),
    make("span", { className: "pages" }, `${place + 1} of ${turn.versions.length}`),
    step("Version after", "›", 1),
  ];
}

/** Which of two versions is better: a preference to train on. */
function preference(turn) {
  const others = turn.versions.map((id, index) => ({ id, name: `version ${index + 1}` })).filter(({ id }) => id !== turn.id);
  const other = make("select", { "aria-label": "Compared with" });
  fill(other, others);
  const send = async (better, tie) => {
    const pair = [turn.id, Number(other.value)];
    const [turn_id, other_id] = better ? pair : pair.reverse();
    if (await act("chat_prefer", { turn_id, other_id, tie })) say("Stored. It counts in the next training run.", "info");
  };
  return make(
    "details",
    { className: "prefer" },
    make("summary", {}, "Prefer"),
    make(
      "div",
      {},
      make("span", {}, "Against"),
      other,
      button("This one is better", () => send(true, false)),
      button("The other is better", () => send(false, false)),
      button("Equally good", () => send(true, true)),
    ),
  );
}

function editTurn(turn, node) {
  const box = make("textarea", { value: turn.text, rows: 3, "aria-label": "Your message" });
  const send = () => act("chat_edit", { turn_id: turn.id, text: box.value, settings: settings() });
  node.classList.add("editing");
  node.replaceChildren(
    box,
    make(
      "div",
      { className: "turn-actions" },
      button("Send in a new branch", send, { className: "primary" }),
      button("Cancel", () => stopEditing(node)),
    ),
  );
  box.focus();
}
