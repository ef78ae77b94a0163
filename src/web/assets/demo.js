// The page of a demo: its clock, told by the service as server-sent events. Without it the page says the same, as of when
// it was loaded.
(() => {
  "use strict";
  const clock = document.querySelector("[data-clock]");
  if (!clock) return;
  const lang = document.documentElement.lang;
  for (const time of document.querySelectorAll("time[data-local]")) {
    const date = new Date(time.dateTime);
    const today = date.toDateString() === new Date().toDateString();
    time.textContent = date.toLocaleString(lang, today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
  }

  // The banner's links lead to what they name.
  const unfold = () => {
    const named = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!named) return;
    if (named.tagName === "DETAILS") named.open = true;
    named.querySelector("summary, button")?.focus();
  };
  unfold();
  addEventListener("hashchange", unfold);

  const two = (n) => String(n).padStart(2, "0");
  const said = (seconds) => {
    const [d, h, m, s] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60, seconds % 60];
    if (d) return `${d} ${lang === "fr" ? "j" : "d"} ${two(h)}:${two(m)}`;
    return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
  };
  let ends = Date.now() + 1000 * Number(clock.dataset.seconds);
  const show = () => {
    const seconds = Math.max(0, Math.round((ends - Date.now()) / 1000));
    clock.textContent = said(seconds);
    clock.classList.toggle("soon", seconds < 300);
  };
  show();
  setInterval(show, 1000);

  // What the page shows is no longer so: the service knows what to say now.
  const over = () => location.replace(location.pathname);
  const stream = new EventSource(clock.dataset.status);
  const heard = (event) => {
    const { seconds_left: left, state } = JSON.parse(event.data);
    if (["expired", "failed", "gone"].includes(state)) { stream.close(); over(); return; }
    if (typeof left === "number" && Math.abs(Date.now() + 1000 * left - ends) > 1500) { ends = Date.now() + 1000 * left; show(); }
  };
  stream.addEventListener("state", heard);
  stream.addEventListener("countdown", heard);
  // A form of this page leads on by itself, whatever it makes of the demo.
  document.addEventListener("submit", (event) => { if (event.target.target !== "_blank") stream.close(); });
  // A stream that is refused for good: its demo has ended.
  stream.addEventListener("error", () => { if (stream.readyState === EventSource.CLOSED && Date.now() >= ends) over(); });
  addEventListener("pagehide", () => stream.close());
})();
