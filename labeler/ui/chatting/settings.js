// What the next answer is drawn with, and what can be done to the whole conversation. All of it is folded.

const NO_PRESET = { id: "", name: "Choose a preset …" };
const NO_REWARD = { id: "", name: "none" };

function settingsFold() {
  const preset = make("select", { id: "chat-preset", onchange: usePreset });
  const system = make("textarea", { id: "chat-system", rows: 2 });
  const name = make("input", { id: "chat-preset-name", type: "text", maxLength: 100, placeholder: "Name of a new preset" });
  name.setAttribute("aria-label", "Name of a new preset");
  return fold(
    "Settings",
    "chat-settings",
    make(
      "div",
      { className: "chat-fields" },
      field("System prompt", system, "Who the model should be. Empty: the model's own default."),
      make(
        "div",
        { className: "chat-field" },
        make("label", { htmlFor: "chat-preset" }, "Presets"),
        preset,
        make("div", { className: "chat-line" }, name, button("Save as preset", savePreset), button("Delete preset", deletePreset)),
      ),
      field(
        "Reward model",
        make("select", { id: "chat-reward", onchange: scoreShown }),
        "Scores every answer. Only differences mean something.",
      ),
    ),
    make("div", { className: "chat-fields knobs", id: "chat-knobs" }),
  );
}

function conversationFold() {
  const title = make("input", { id: "chat-title", type: "text", maxLength: 100 });
  return fold(
    "This conversation",
    "chat-manage",
    make(
      "div",
      { className: "chat-line" },
      make("label", { htmlFor: "chat-title" }, "Title"),
      title,
      button("Rename", rename),
      make("a", { id: "chat-export", download: "" }, "Export as JSON"),
      button("Delete", confirmDelete, { id: "chat-delete", className: "danger" }),
    ),
  );
}

/** The fields of how an answer is drawn, as the server defines them; made once. */
function drawKnobs() {
  const place = part("#chat-knobs");
  if (place.childElementCount) return;
  for (const { name, label, info, low, high, step, value } of lists.knobs) {
    const input = make("input", { id: `chat-knob-${name}`, type: "number", min: low, max: high, step, value });
    place.append(field(label, input, info));
  }
}

function drawPresets() {
  const names = [...Object.keys(lists.presets), ...Object.keys(lists.own_presets)];
  fill(part("#chat-preset"), [NO_PRESET, ...[...new Set(names)].map((name) => ({ id: name, name }))]);
}

/** What the fields say, as the server reads it. */
function settings() {
  const number = (value) => (value === "" ? null : Number(value));
  const sampling = lists.knobs.map(({ name }) => [name, number(part(`#chat-knob-${name}`).value)]);
  return {
    checkpoint_id: number(part("#chat-checkpoint").value),
    reward_id: number(part("#chat-reward").value),
    system_prompt: part("#chat-system").value,
    sampling: Object.fromEntries(sampling),
  };
}

/** Put back what was chosen when the conversation was last answered. */
function restore({ checkpoint_id, reward_id, system_prompt, sampling }) {
  fill(part("#chat-checkpoint"), lists.checkpoints, checkpoint_id);
  fill(part("#chat-reward"), [NO_REWARD, ...lists.rewards], reward_id ?? "");
  part("#chat-system").value = system_prompt ?? "";
  for (const [name, value] of Object.entries(sampling ?? {})) {
    const input = part(`#chat-knob-${CSS.escape(name)}`);
    if (input) input.value = value;
  }
}

function usePreset() {
  const name = part("#chat-preset").value;
  const text = lists.own_presets[name] ?? lists.presets[name];
  if (text !== undefined) part("#chat-system").value = text;
}

async function keepPreset(name, text, done) {
  const answer = await call("chat_preset", { name, text });
  if (!answer) return;
  lists.own_presets = answer.own_presets;
  drawPresets();
  say(done, "info");
}

const savePreset = () => keepPreset(part("#chat-preset-name").value, part("#chat-system").value, "Preset saved.");
const deletePreset = () => keepPreset(part("#chat-preset").value, "", "Preset deleted. Those that everybody has stay.");

async function scoreShown() {
  const reward_id = Number(part("#chat-reward").value);
  if (!shown || !reward_id) return drawTurns();
  say("Scoring …", "info");
  if (await act("chat_score", { conversation_id: shown.id, reward_id })) say("");
}

async function rename() {
  if (await open(call("chat_rename", { conversation_id: shown.id, title: part("#chat-title").value }))) say("Renamed.", "info");
}

/** The first click asks, the second one deletes. */
async function confirmDelete({ target, detail }) {
  if (detail > 1) return; // the second half of a double click confirms nothing
  if (!target.dataset.sure) {
    target.dataset.sure = "yes";
    target.textContent = "Delete for good";
    target.onblur = () => resetDelete();
    return;
  }
  const id = shown.id;
  resetDelete();
  if (await open(call("chat_delete", { conversation_id: id }))) say("Deleted. Preferences that were sent stay.", "info");
}

function resetDelete() {
  const target = part("#chat-delete");
  delete target.dataset.sure;
  target.textContent = "Delete";
}
