// The page's buttons: a click on [data-action] calls what was registered under that name. It knows none of them.

const registered = {};

/** Add actions, name -> (element, event). */
export const register = (actions) => Object.assign(registered, actions);

document.addEventListener("click", (event) => {
  const element = event.target.closest("[data-action]");
  if (element) registered[element.dataset.action](element, event);
});
