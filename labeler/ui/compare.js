// Compare: what each answer has that the first has not, word by word (differences.js). Text only, never HTML.

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-differences]");
  if (!button) return;
  const shown = button.ariaPressed !== "true";
  button.ariaPressed = String(shown);
  const [first, ...others] = element.querySelectorAll(".side");
  for (const side of others) {
    side.querySelector(".answer").hidden = shown;
    side.querySelector(".differences").replaceChildren(...(shown ? differing(first, side) : []));
  }
});

function differing(first, side) {
  const runs = differences(first.dataset.text, side.dataset.text);
  const note = document.createElement("p");
  note.className = "differences-note";
  note.textContent = runs
    ? "Struck out: only in A. Underlined: only here."
    : "These two are too long to compare word by word.";
  const text = document.createElement("div");
  text.className = "differences-text";
  text.dir = "auto";
  for (const [kind, words] of runs ?? [["same", side.dataset.text]]) {
    const part = document.createElement(kind === "same" ? "span" : kind);
    part.textContent = words;
    text.append(part);
  }
  return [note, text];
}
