// What every page may use: buttons that copy, and times that run. Without it the page says the same.
(() => {
  "use strict";

  // <button data-copy="ID" data-done="Copied" hidden>: copies that element's text.
  for (const button of document.querySelectorAll("button[data-copy]")) {
    const source = document.getElementById(button.dataset.copy);
    if (!source || !navigator.clipboard) continue;
    button.hidden = false;
    const label = button.textContent;
    let back = 0;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(source.value ?? source.textContent);
        button.textContent = button.dataset.done;
      } catch {
        getSelection().selectAllChildren(source);
      }
      clearTimeout(back);
      back = setTimeout(() => { button.textContent = label; }, 2000);
    });
  }

  // A form is sent once, however often its button is pressed.
  for (const form of document.querySelectorAll("form[data-once]")) {
    form.addEventListener("submit", (event) => {
      if (form.dataset.sent) { event.preventDefault(); return; }
      form.dataset.sent = "1";
      const button = event.submitter;
      if (button?.dataset.busy) { button.setAttribute("aria-busy", "true"); button.textContent = button.dataset.busy; }
    });
    // The browser's way back shows the page as it was.
    addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  }
})();
