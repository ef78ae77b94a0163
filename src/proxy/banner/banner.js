// The banner of a demo shop: the time that is left, and a button to close it. Lives in a shadow root, so that neither
// the theme nor the banner changes the other; no inline style or script, so that a policy for 'self' lets it in.
(() => {
  "use strict";
  const banner = document.querySelector("demo-multiplexer-banner");
  if (!banner || banner.shadowRoot) return;
  const closed = "demo-multiplexer-banner-closed";
  const remembered = () => { try { return sessionStorage.getItem(closed); } catch { return null; } };
  // In a frame the page around it has its own.
  if (window.top !== window.self || remembered()) { banner.remove(); return; }

  const words = banner.dataset;
  const root = banner.attachShadow({ mode: "open" });
  const css = `
    :host { all: initial !important; position: fixed !important; left: 12px !important; bottom: 12px !important;
            z-index: 2147483646 !important; max-width: calc(100vw - 24px) !important; }
    div { display: flex; flex-wrap: wrap; align-items: center; gap: 2px 10px; padding: 6px 6px 6px 14px; border-radius: 20px;
          font: 14px/1.4 system-ui, sans-serif; color: #fff; background: #1d2733;
          box-shadow: 0 2px 10px rgb(0 0 0 / .35); }
    span.left { font-variant-numeric: tabular-nums; font-weight: 600; white-space: nowrap; }
    nav { display: flex; gap: 2px; }
    a { color: #fff; padding: 4px 9px; border-radius: 14px; text-decoration: none; background: rgb(255 255 255 / .12); }
    button { all: unset; width: 28px; height: 28px; border-radius: 14px; text-align: center; cursor: pointer; }
    a:hover, button:hover { background: rgb(255 255 255 / .24); }
    a:focus-visible, button:focus-visible { outline: 2px solid #fff; }
    @media print { :host { display: none !important; } }`;
  try {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(css);
    root.adoptedStyleSheets = [sheet];
  } catch {
    root.append(Object.assign(document.createElement("style"), { textContent: css }));
  }
  banner.removeAttribute("style");
  const box = document.createElement("div");
  const text = Object.assign(document.createElement("span"), { textContent: words.left });
  const left = Object.assign(document.createElement("span"), { className: "left" });
  left.setAttribute("role", "timer");
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "\u00d7" });
  button.setAttribute("aria-label", words.close);
  box.append(text, left);
  // Links and no more: what they lead to is done on a page that this shop's scripts do not reach.
  if (words.manage) {
    const nav = document.createElement("nav");
    for (const [label, part] of [[words.more, "more"], [words.reset, "reset"], [words.end, "end"]]) {
      const link = Object.assign(document.createElement("a"), { href: `${words.manage}#${part}`, textContent: label, target: "_blank", rel: "noopener" });
      nav.append(link);
    }
    box.append(nav);
  }
  box.append(button);
  root.append(box);

  let ends = null;
  const show = () => {
    if (ends === null) { left.textContent = ""; return; }
    const seconds = Math.max(0, Math.round((ends - Date.now()) / 1000));
    const two = (n) => String(n).padStart(2, "0");
    const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
    text.textContent = seconds ? words.left : words.ended;
    left.textContent = seconds ? (h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`) : "";
  };
  const ask = async () => {
    try {
      const answer = await fetch("/.demo-multiplexer/status", { cache: "no-store", credentials: "omit" });
      if (answer.ok) ends = Date.now() + 1000 * (await answer.json()).seconds_left;
      else if (answer.status === 410) ends = Date.now();
    } catch { /* What was known stands. */ }
    show();
  };
  ask();
  const ticking = setInterval(show, 1000);
  const asking = setInterval(ask, 60000);
  const seen = () => { if (!document.hidden) ask(); };
  document.addEventListener("visibilitychange", seen);
  button.addEventListener("click", () => {
    try { sessionStorage.setItem(closed, "1"); } catch { /* Then it comes back with the next page. */ }
    clearInterval(ticking);
    clearInterval(asking);
    document.removeEventListener("visibilitychange", seen);
    banner.remove();
  });
})();
