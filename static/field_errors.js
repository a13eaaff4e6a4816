// Errors beside the form's fields: shows them, marks their fields, and takes them away.

import { showLinkField } from "./player.js";

const form = document.getElementById("ask");
const slotOf = (name) => document.getElementById(`error-${name}`) ?? document.getElementById("form-error");

export const fieldOf = (name) => form.elements.namedItem(name);

/** Show an error beside its field, and lead to the field if it is to be mended now. */
export function showError(name, message, { leads = true } = {}) {
  const slot = slotOf(name);
  slot.textContent = message;
  if (leads) markField(slot.dataset.field);
  else fieldOf(name)?.setAttribute("aria-invalid", "true");
}

/** Mark the field whose error is shown, and lead to it. */
export function markField(name) {
  const field = name && fieldOf(name);
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.closest("details")?.setAttribute("open", "");
  if (name === "video_url") showLinkField();
  field.focus({ preventScroll: true });
  slotOf(name).scrollIntoView({ block: "nearest" });
}

export function clearErrors(names) {
  for (const name of names) {
    slotOf(name).textContent = "";
    fieldOf(name)?.removeAttribute("aria-invalid");
  }
  slotOf("").textContent = "";
}
