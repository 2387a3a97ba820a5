// Two completions: one scale of nine steps in place of ranks. 1: A much better, 5: a tie, 9: B much better.

const TIE = 5;
const STEPS = 9;

/** The step that the ranks and the strength stand for; null where nothing was said. */
function scaleStep() {
  const [a, b] = state.ranks;
  if (a === null || b === null) return null;
  if (a === b) return TIE;
  return a < b ? TIE - (state.strength ?? 1) : TIE + (state.strength ?? 1);
}

function setStep(chosen) {
  state.strength = chosen === null || chosen === TIE ? null : Math.abs(chosen - TIE);
  state.ranks = chosen === null ? [null, null] : [chosen <= TIE ? 1 : 2, chosen >= TIE ? 1 : 2];
  drawState();
  if (chosen !== null) announce(stepName(chosen));
  changed();
}

/** One step to the left or right; the first goes from the middle. */
const moveStep = (by) => setStep(Math.min(Math.max((scaleStep() ?? TIE) + by, 1), STEPS));

const stepName = (number) => TEXTS.scaleName(number === TIE ? "" : number < TIE ? "A" : "B", Math.abs(number - TIE));

function makeScale() {
  const steps = Array.from({ length: STEPS }, (_, at) => {
    const number = at + 1;
    return make(
      "button",
      {
        type: "button",
        dataset: { step: number },
        ariaLabel: stepName(number),
        onclick: () => setStep(scaleStep() === number ? null : number),
      },
      make("span", { className: "step-mark", ariaHidden: "true" }, number === TIE ? "=" : `${number < TIE ? "A" : "B"}${Math.abs(number - TIE)}`),
      make("span", { className: "step-name", ariaHidden: "true" }, stepName(number)),
      make("kbd", { ariaHidden: "true" }, String(number)),
    );
  });
  return make(
    "div",
    { className: "scale", role: "group", ariaLabel: TEXTS.scale },
    make("div", { className: "scale-steps" }, ...steps),
    make("p", { className: "scale-said" }),
  );
}

function drawScale() {
  const chosen = scaleStep();
  for (const step of root.querySelectorAll("[data-step]")) step.ariaPressed = String(Number(step.dataset.step) === chosen);
  part(".scale-said").textContent = chosen === null ? TEXTS.scale : stepName(chosen);
}
