// What stands beside the task when asked for: the keys, the guidelines, the last labels. One at a time.

let panel = null; // "keys", "guidelines" or "history"

const PANELS = {
  keys: { title: TEXTS.keys, fill: fillKeys },
  guidelines: { title: TEXTS.guidelines, fill: fillGuidelines },
  history: { title: TEXTS.history, fill: fillHistory },
};

function togglePanel(name) {
  panel = panel === name ? null : name;
  drawPanel();
  if (panel) part(".side").focus({ preventScroll: true });
  else if (state) mark(state.active, true);
  if (panel && narrow()) part(".side").scrollIntoView({ block: "start" });
}

function drawPanel() {
  for (const name of Object.keys(PANELS)) part(`.tools .${name}`)?.setAttribute("aria-expanded", String(panel === name));
  const side = part(".side");
  if (!side) return;
  side.hidden = panel === null;
  root.classList.toggle("has-side", panel !== null);
  if (panel === null) return side.replaceChildren();
  const body = make("div", { className: "side-body", tabIndex: 0, role: "group", ariaLabel: PANELS[panel].title });
  side.dataset.panel = panel;
  side.ariaLabel = PANELS[panel].title;
  side.replaceChildren(
    make(
      "div",
      { className: "side-head" },
      make("h3", {}, PANELS[panel].title),
      button(TEXTS.close, () => togglePanel(panel), { className: "quiet" }),
    ),
    body,
  );
  PANELS[panel].fill(body);
}

function fillKeys(body) {
  const rows = TEXTS.keyList(COMMAND, question()).map(([keys, meaning]) => {
    const names = keys.flatMap((key) => [key === "–" || key === "arrows" ? key : make("kbd", {}, key), " "]);
    return make("div", {}, make("dt", {}, ...names), make("dd", {}, meaning));
  });
  body.replaceChildren(make("dl", {}, ...rows));
}

/** What the server says, put in by `show`, unless another panel was opened meanwhile. */
async function fillFrom(body, name, show) {
  body.replaceChildren(make("p", { className: "nothing" }, TEXTS.loading));
  const answer = await call(name, { project: view.project.id });
  if (!body.isConnected) return;
  if (answer.error) body.replaceChildren(make("p", { className: "rank-notice", role: "alert", dataset: { kind: "error" } }, answer.error));
  else show(answer);
}

// ---------------------------------------------------------------- guidelines

const seenKey = () => `guidelines/${view.user}/${view.project.id}`;
const unseenGuidelines = () => view.project.guidelines_version > (recall(device, seenKey()) ?? 0);

function fillGuidelines(body) {
  fillFrom(body, "rank_guidelines", ({ html, version }) => {
    remember(device, seenKey(), version);
    drawDot();
    if (!version) return body.replaceChildren(make("p", { className: "nothing" }, TEXTS.noGuidelines));
    const text = make("div", { className: "markdown", dir: "auto" });
    text.innerHTML = html; // sanitised by the server
    body.replaceChildren(make("p", { className: "version" }, TEXTS.guidelinesVersion(version)), text);
  });
}

function drawDot() {
  const opener = part(".tools .guidelines");
  if (!opener) return;
  opener.replaceChildren(TEXTS.guidelines);
  if (unseenGuidelines()) opener.append(" ", make("span", { className: "unseen" }, TEXTS.guidelinesNew));
}

// ---------------------------------------------------------------- last labels

function fillHistory(body) {
  fillFrom(body, "rank_history", ({ labels }) => {
    if (!labels.length) return body.replaceChildren(make("p", { className: "nothing" }, TEXTS.noHistory));
    const rows = labels.map(({ assignment, prompt, said, at }) =>
      make(
        "li",
        {},
        make(
          "button",
          { type: "button", ariaCurrent: String(correcting() && assignment === view.assignment), onclick: () => openLabel(assignment) },
          make("span", { className: "label-prompt", dir: "auto" }, prompt),
          make("span", { className: "label-said" }, inShort(said)),
          make("span", { className: "label-time" }, moment(at)),
        ),
      ),
    );
    body.replaceChildren(make("ol", { className: "labels" }, ...rows));
  });
}

/** A label in a line: "A 2 · B 1 · C –". */
function inShort(said) {
  if (said.all_bad) return TEXTS.allBadShort;
  if (said.strength) return TEXTS.scaleName(said.ranks[0] === 1 ? "A" : "B", said.strength);
  const numbers = said.ratings ?? said.ranks;
  return numbers.map((number, index) => `${letter(index)} ${number ?? "–"}`).join(" · ");
}

const moment = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
