// The page where a kept demo is opened: the key of a link stands behind its #, which no browser sends. It goes into the
// form and out of the address, so that it is not in the history. Without this script it is typed.
(() => {
  "use strict";
  const field = document.querySelector("[data-from-fragment]");
  const key = location.hash.slice(1);
  if (!field || !key) return;
  field.value = key;
  history.replaceState(null, "", location.pathname);
  field.form.querySelector("button")?.focus();
})();
