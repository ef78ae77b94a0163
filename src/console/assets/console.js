// The console's pages are whole without this. With it they are read again when something has happened, and what
// cannot be undone is asked for twice.
(() => {
  "use strict";

  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !confirm(question)) event.preventDefault();
  });

  if (!document.querySelector("[data-live]")) return;
  const pulse = document.getElementById("pulse");
  let reading = false;
  let again = false;

  // Puts the parts of a page that was read anew into this one, but for what somebody is typing in.
  function replace(fresh) {
    for (const old of document.querySelectorAll("[data-live]")) {
      const part = fresh.getElementById(old.id);
      if (!part || part.innerHTML === old.innerHTML) continue;
      const active = document.activeElement;
      const inside = old.contains(active);
      if (inside && active.matches("input, select, textarea")) continue;
      const open = [...old.querySelectorAll("details[open]")].map((it) => it.id);
      const scroller = old.matches(".scroll") ? old : old.querySelector(".scroll");
      const left = scroller?.scrollLeft ?? 0;
      old.replaceChildren(...part.childNodes);
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      const after = old.matches(".scroll") ? old : old.querySelector(".scroll");
      if (after) after.scrollLeft = left;
      if (inside && active.id) document.getElementById(active.id)?.focus({ preventScroll: true });
    }
  }

  async function read() {
    if (reading) { again = true; return; }
    reading = true;
    try {
      // What was just done is told once.
      const address = new URL(location.href);
      address.searchParams.delete("did");
      const answer = await fetch(address, { headers: { accept: "text/html" } });
      // Signed out elsewhere, or the session is over.
      if (answer.redirected) { location.reload(); return; }
      // An instance that is gone keeps its last face.
      if (answer.ok) replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch { /* The stream tells when the daemon is there again. */ } finally {
      reading = false;
      if (again) { again = false; soon(); }
      // A task says how far it is between the events, too.
      if (document.querySelector("progress")) setTimeout(soon, 1000);
    }
  }

  let waiting = 0;
  function soon() {
    if (waiting || document.hidden) return;
    waiting = setTimeout(() => { waiting = 0; read(); }, 250);
  }

  function say(text, tone) {
    pulse.hidden = false;
    pulse.className = `badge ${tone}`;
    if (pulse.textContent !== text) pulse.textContent = text;
  }

  const stream = new EventSource("/admin/live");
  stream.addEventListener("open", () => { say(pulse.dataset.liveText, "good"); });
  stream.addEventListener("error", () => {
    say(pulse.dataset.lostText, "warn");
  });
  stream.addEventListener("change", soon);
  stream.addEventListener("sample", soon);
  document.addEventListener("visibilitychange", soon);
  if (document.querySelector("progress")) setTimeout(soon, 1000);
  addEventListener("pagehide", () => stream.close());
})();
