// docs/screenshots: the pages as they are, under a name that is nobody's. Look at each before you commit it.
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync } from "node:fs";
import { PORT, address, api, openBrowser, person, serve, stopServing } from "./rig.mjs";

const domain = "demo.example.com";
const site = `http://${domain}`;
const folder = new URL("../../docs/screenshots/", import.meta.url).pathname;
mkdirSync(folder, { recursive: true });

const browser = await openBrowser(`MAP ${domain} ${address}:${PORT}, MAP *.${domain} ${address}:${PORT}`,
  // As https would be: without it there is no button that copies.
  [`--unsafely-treat-insecure-origin-as-secure=${site}`]);
const settings = { BASE_DOMAIN: domain, PUBLIC_PORT: "80", POOL_TARGET_SIZE: "2" };
const wide = { viewport: { width: 1200, height: 780 } };
const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };

async function shot(page, name, options = {}) {
  await page.mouse.move(0, 0);
  await page.screenshot({ path: `${folder}${name}.png`, ...options });
  console.log(`docs/screenshots/${name}.png`);
}
async function click(page) {
  await page.goto(`${site}/`);
  await page.getByRole("button", { name: "Start my demo" }).click();
  await page.getByRole("timer").filter({ hasText: ":" }).waitFor();
}

/** The operator's console, after half a minute in which something happened. */
async function operators() {
  const token = `dmx_${randomBytes(32).toString("hex")}`;
  const entry = `ops:operate+acquire:${createHash("sha256").update(token).digest("hex")}`;
  await serve({ ...settings, POOL_TARGET_SIZE: "3", MAX_INSTANCES: "16", API_TOKENS: entry });
  const headers = { authorization: `Bearer ${token}` };
  const ask = async (method, path, body) => {
    const answer = await api(method, `/api/v1/demo${path}`, { host: domain, headers, body });
    if (answer.status >= 300) throw new Error(`${method} ${path}: ${answer.status} ${answer.text}`);
    return answer.text ? answer.json() : undefined;
  };
  const shops = [];
  for (const burst of [1, 0, 2, 4, 1, 0, 1, 1]) {
    for (let n = 0; n < burst; n += 1) shops.push((await ask("POST", "/acquire", { ttl: `${20 + 7 * shops.length}m` })).id);
    if (shops.length > 5) await ask("DELETE", `/${shops.shift()}`);
    await new Promise((done) => setTimeout(done, 5000));
  }
  await ask("POST", `/${shops[1]}/hibernate`);
  for (const [colorScheme, suffix] of [["light", ""], ["dark", "-dark"]]) {
    const { page } = await person(browser, { viewport: { width: 1280, height: 800 }, colorScheme });
    await page.goto(`${site}/admin`);
    await page.getByLabel("API token").fill(token);
    await page.keyboard.press("Enter");
    await page.getByText("Live", { exact: true }).waitFor();
    await shot(page, `console${suffix}`, { fullPage: true });
    if (!suffix) {
      await page.getByRole("link", { name: "Instances" }).click();
      await page.getByText("hibernated", { exact: true }).last().waitFor();
      await shot(page, "console-instances", { fullPage: true });
    }
  }
}

try {
  await serve(settings);
  // So that there is a median to tell.
  for (let n = 0; n < 3; n += 1) {
    const { id } = (await api("POST", "/api/v1/demo/acquire", { host: domain })).json();
    await api("DELETE", `/api/v1/demo/${id}`, { host: domain });
    await (await serve(settings)).hasReady();
  }
  for (const [colorScheme, suffix] of [["light", ""], ["dark", "-dark"]]) {
    const { page, context } = await person(browser, { ...wide, colorScheme });
    await page.goto(`${site}/`);
    await shot(page, `landing${suffix}`);
    await click(page);
    await shot(page, `demo${suffix}`);
    if (!suffix) {
      await page.goto((await page.locator("#shop-url").getAttribute("href")));
      await page.locator("demo-multiplexer-banner").getByRole("timer").filter({ hasText: ":" }).waitFor();
      await shot(page, "shop-with-banner");
      await page.goto(`${site}/embed?golden=wordpress`);
      await shot(page, "embed", { fullPage: true });
    }
    await context.close();
  }
  const { page } = await person(browser, { ...phone, locale: "fr-FR" });
  await page.goto(`${site}/`);
  await shot(page, "phone-landing");
  await page.getByRole("button", { name: "Démarrer ma démo" }).click();
  await page.getByRole("timer").filter({ hasText: ":" }).waitFor();
  await shot(page, "phone-demo", { fullPage: true });

  await serve({ ...settings, MAX_INSTANCES: "1", POOL_TARGET_SIZE: "0" });
  await api("POST", "/api/v1/demo/acquire", { host: domain, body: { ttl: "10m" } });
  for (let n = 0; n < 3; n += 1) {
    const { page: waiting } = await person(browser, wide);
    await waiting.goto(`${site}/`);
    await waiting.getByRole("button", { name: "Start my demo" }).click();
    await waiting.getByText(`${n + 1} of ${n + 1}`).waitFor();
    if (n === 0) await shot(waiting, "waiting");
  }

  await operators();
} finally {
  await browser.close();
  await stopServing();
}
