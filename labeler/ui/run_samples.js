// Shows the answers at the two chosen steps. The choice outlives the redraws of a run that goes on; without one the
// right side follows the newest step.

const chosen = {};

function show() {
  const section = element.querySelector('.samples');
  if (!section) return;
  const wanted = (chosen[section.dataset.run] ??= {});
  const steps = {};
  for (const select of section.querySelectorAll('select')) {
    const values = Array.from(select.options, option => option.value);
    const side = select.dataset.side;
    select.value = values.includes(wanted[side]) ? wanted[side] : select.dataset.default;
    steps[side] = select.value;
  }
  for (const cell of section.querySelectorAll('.side')) {
    const step = cell.dataset.step;
    cell.hidden = step !== steps.left && step !== steps.right;
    cell.style.order = step === steps.left ? 0 : 1;
  }
}

element.addEventListener('change', event => {
  const section = element.querySelector('.samples');
  const side = event.target.dataset.side;
  if (!section || !side) return;
  (chosen[section.dataset.run] ??= {})[side] = event.target.value;
  show();
});
watch('value', show);
show();
