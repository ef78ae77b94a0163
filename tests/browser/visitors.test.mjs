// What a visitor sees, from the click to the end, on a real golden.
import assert from "node:assert/strict";
import {
  PORT, api, assertAccessible, assertFits, brightness, eventually, home, serve, test as claim,
} from "./rig.mjs";

/** A claim about a service with the usual settings, or others. */
const test = (name, body, settings) => claim(name, async (t) => {
  await serve(settings);
  await body(t);
});

const start = { name: "Start my demo" };
/** From the landing page to the page of a demo; answers the demo's id. */
async function click(page, url = home) {
  await page.goto(url);
  await page.getByRole("button", start).click();
  await page.waitForURL(/\/demo\/[a-z2-7]{12}/);
  return new URL(page.url()).pathname.split("/").pop();
}

/** The tab that opens with a click. */
async function newTab(page, act) {
  const [tab] = await Promise.all([page.context().waitForEvent("page"), act()]);
  await tab.waitForLoadState("domcontentloaded");
  return tab;
}

const shown = (page, id) => page.locator(`#${id}`).textContent();

test("a click leads to a shop that works, and one more signs its owner in", async (t) => {
  const page = await t.visitor();
  const id = await click(page);
  await page.getByText(/Taken ready from the pool in [\d.]+\sms/).waitFor();
  assert.equal(await shown(page, "shop-url"), `http://${id}.localhost:${PORT}/`);
  const shop = await newTab(page, () => page.getByRole("link", { name: "Open the shop" }).click());
  await shop.getByRole("heading", { name: "A mug that keeps its promise" }).waitFor();
  assert.match(await shop.title(), /^Demo shop/);
  assert.equal(new URL(shop.url()).host, `${id}.localhost:${PORT}`);
  const office = await newTab(page, () => page.getByRole("button", { name: "Open the back office" }).click());
  await office.locator("#wpadminbar").waitFor();
  assert.match(office.url(), /\/wp-admin\//);
  assert.ok((await shown(page, "password")).length >= 12);
});

test("credentials are copied with a button", async (t) => {
  const page = await t.visitor({ permissions: ["clipboard-read", "clipboard-write"] });
  await click(page);
  const row = page.locator(".facts > div").filter({ hasText: "Password" });
  await row.getByRole("button").click();
  await row.getByText("Copied").waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), await shown(page, "password"));
});

test("the time left runs, and grows by a click", async (t) => {
  const page = await t.visitor();
  await click(page);
  const clock = page.getByRole("timer");
  const seconds = async () => (await clock.textContent()).split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
  const first = await eventually("the clock runs", async () => (await clock.textContent()).includes(":") && (await seconds()));
  await eventually("it counts down", async () => (await seconds()) < first);
  await page.getByRole("button", { name: "+ 1 h more" }).click();
  await page.getByText("It has more time now.").waitFor();
  await eventually("an hour more", async () => (await seconds()) > first + 3500);
});

test("an extension made elsewhere is told to the open page", async (t) => {
  const page = await t.visitor();
  const id = await click(page);
  const clock = page.getByRole("timer");
  await eventually("the clock runs", async () => /^(1:00:00|59:\d\d)$/.test(await clock.textContent()));
  assert.equal((await api("POST", `/api/v1/demo/${id}/extend`, { body: { ttl: "2h" } })).status, 200);
  await eventually("it is told", async () => /^(2:59|3:00):\d\d$/.test(await clock.textContent()));
});

test("a second click leads to the same shop, and the landing page knows it", async (t) => {
  const page = await t.visitor();
  const id = await click(page);
  assert.equal(await click(page), id);
  await page.goto(home);
  await page.getByRole("heading", { name: "Your demos" }).waitFor();
  await page.getByRole("link", { name: /Go on with it/ }).click();
  assert.equal(new URL(page.url()).pathname, `/demo/${id}`);
  const other = await t.visitor();
  assert.notEqual(await click(other), id, "somebody else gets another one");
});

test("a demo is its visitor's alone", async (t) => {
  const id = await click(await t.visitor());
  const other = await t.visitor();
  await other.goto(`${home}demo/${id}`);
  await other.getByRole("heading", { name: "This demo belongs to another browser" }).waitFor();
  t.forgive(other, /403/);
});

test("a released demo is gone, also for its address, which offers a new one", async (t) => {
  const page = await t.visitor();
  const id = await click(page);
  await page.getByText("End it now").click();
  await page.getByRole("button", { name: "Yes, delete it" }).click();
  await page.getByText("Your demo has ended").waitFor();
  await page.goto(`http://${id}.localhost:${PORT}/`);
  await page.getByRole("heading", { name: "This demo has ended" }).waitFor();
  await assertAccessible(page);
  await page.getByRole("link", { name: "Start a new demo" }).click();
  assert.equal(page.url(), home);
  t.forgive(page, /410/);
});

test("a reset undoes what was changed, and the address and the login stay", async (t) => {
  const page = await t.visitor();
  const id = await click(page);
  const password = await shown(page, "password");
  const office = await newTab(page, () => page.getByRole("button", { name: "Open the back office" }).click());
  await office.goto(`http://${id}.localhost:${PORT}/wp-admin/options-general.php`);
  await office.getByLabel("Site Title").fill("Changed by me");
  await office.getByRole("button", { name: "Save Changes" }).click();
  await office.getByText("Settings saved.").waitFor();
  await office.goto(`http://${id}.localhost:${PORT}/`);
  assert.match(await office.title(), /^Changed by me/);
  await page.goto(`${home}demo/${id}#reset`);
  await page.getByRole("button", { name: "Yes, reset it" }).click();
  await page.getByText("It is as it was at the start.").waitFor();
  assert.equal(await shown(page, "password"), password);
  const shop = await newTab(page, () => page.getByRole("link", { name: "Open the shop" }).click());
  assert.match(await shop.title(), /^Demo shop/);
});

test("a demo is kept, ends, and comes back by its link to whoever has it, with all that was in it", async (t) => {
  const page = await t.visitor({ permissions: ["clipboard-read", "clipboard-write"] });
  const id = await click(page);
  const password = await shown(page, "password");
  const office = await newTab(page, () => page.getByRole("button", { name: "Open the back office" }).click());
  await office.goto(`http://${id}.localhost:${PORT}/wp-admin/options-general.php`);
  await office.getByLabel("Site Title").fill("Kept by me");
  await office.getByRole("button", { name: "Save Changes" }).click();
  await office.getByText("Settings saved.").waitFor();
  await page.goto(`${home}demo/${id}#save`);
  await page.getByRole("button", { name: "Yes, keep it" }).click();
  await page.getByRole("heading", { name: "Your demo is kept" }).waitFor();
  await assertAccessible(page);
  await assertFits(page);
  const link = await shown(page, "kept-link");
  await page.locator(".facts > div").filter({ hasText: "Link" }).getByRole("button").click();
  await page.getByText("Copied").waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), link);
  await page.getByRole("link", { name: "Back to the demo" }).click();
  await page.getByText("End it now").click();
  await page.getByRole("button", { name: "Yes, delete it" }).click();
  await page.getByText("Your demo has ended").waitFor();

  const friend = await t.visitor({ locale: "fr-FR", viewport: { width: 360, height: 700 }, javaScriptEnabled: false });
  await friend.goto(link);
  await friend.getByLabel("Clé").fill("aucune");
  await friend.getByRole("button", { name: "Ouvrir" }).click();
  await friend.getByText("Rien n’est conservé ici que cette clé puisse ouvrir.").waitFor();
  t.forgive(friend, /404/);

  const other = await t.visitor();
  await other.goto(link);
  await eventually("the key is out of the address", () => !other.url().includes("#"));
  await assertAccessible(other);
  await other.getByRole("button", { name: "Open it" }).click();
  await other.waitForURL(new RegExp(`/demo/${id}$`));
  assert.equal(await shown(other, "password"), password);
  const shop = await newTab(other, () => other.getByRole("link", { name: "Open the shop" }).click());
  assert.match(await shop.title(), /^Kept by me/);
});

test("a module in the link opens in the back office", async (t) => {
  const page = await t.visitor();
  await page.goto(`${home}?golden=wordpress&module=akismet`);
  await page.getByRole("heading", { name: "Try akismet in a shop of your own" }).waitFor();
  await page.getByRole("button", start).click();
  await page.waitForURL(/\/wp-admin\/plugins\.php\?s=akismet/);
  await page.locator("#wpadminbar").waitFor();
});

test("the banner on a shop's page counts down and leads to its owner's page", async (t) => {
  const page = await t.visitor();
  const id = await click(page, `${home}?go=page`);
  const shop = await newTab(page, () => page.getByRole("link", { name: "Open the shop" }).click());
  const banner = shop.locator("demo-multiplexer-banner");
  await banner.getByRole("timer").filter({ hasText: /\d:\d\d/ }).waitFor();
  const manage = await newTab(shop, () => banner.getByRole("link", { name: "More time" }).click());
  assert.equal(new URL(manage.url()).pathname, `/demo/${id}`);
  await manage.getByRole("button", { name: /\+ 1 h more/ }).waitFor();
  await banner.getByRole("button", { name: "Close" }).click();
  await eventually("it is closed", async () => (await banner.count()) === 0);
});

test("every page is in French for those who read French", async (t) => {
  const page = await t.visitor({ locale: "fr-FR" });
  await page.goto(home);
  assert.equal(await page.locator("html").getAttribute("lang"), "fr");
  await page.goto(`${home}embed`);
  await page.getByRole("heading", { name: "Intégrez une démo à votre site" }).waitFor();
  await page.goto(`${home}demo/aaaaaaaaaaaa`);
  await page.getByRole("heading", { name: "Cette démo n’existe pas" }).waitFor();
  await page.goto(home);
  await page.getByRole("button", { name: "Démarrer ma démo" }).click();
  await page.getByRole("heading", { name: "Temps restant" }).waitFor();
  const id = new URL(page.url()).pathname.split("/").pop();
  await page.getByText("Terminer maintenant").click();
  await page.getByRole("button", { name: "Oui, supprimer" }).click();
  await page.getByText("Votre démo est terminée").waitFor();
  await page.goto(`http://${id}.localhost:${PORT}/`);
  await page.getByRole("heading", { name: "Cette démo est terminée" }).waitFor();
  t.forgive(page, /410|404/);
});

/** Every page that a visitor sees without a demo; the last one is the answer of a shop's address that nobody has. */
const pages = [
  ...["", "?golden=wordpress&module=akismet", "embed", "embed/button", "demo/aaaaaaaaaaaa"].map((path) => home + path),
  `http://aaaaaaaaaaaa.localhost:${PORT}/`,
];

for (const colorScheme of ["light", "dark"]) {
  test(`pages are ${colorScheme} for those who like it ${colorScheme}, and readable for all`, async (t) => {
    const page = await t.visitor({ colorScheme });
    for (const path of pages) {
      await page.goto(path);
      const bright = await brightness(page);
      if (!path.endsWith("embed/button")) assert.ok(colorScheme === "dark" ? bright < 0.2 : bright > 0.9, `${path}: ${bright}`);
      await assertAccessible(page);
    }
    await click(page);
    for (const closed of await page.locator("details > summary").all()) await closed.click();
    await assertAccessible(page);
    t.forgive(page, /404/);
  });
}

test("on a screen of 320 pixels nothing sticks out", async (t) => {
  const page = await t.visitor({ viewport: { width: 320, height: 640 } });
  for (const path of pages) {
    await page.goto(path);
    await assertFits(page);
  }
  await click(page);
  for (const closed of await page.locator("details > summary").all()) await closed.click();
  await assertFits(page);
  await page.goto(await page.locator("#shop-url").getAttribute("href"));
  const banner = page.locator("demo-multiplexer-banner");
  await banner.getByRole("timer").filter({ hasText: /\d:\d\d/ }).waitFor();
  const box = await banner.boundingBox();
  assert.ok(box.x >= 0 && box.x + box.width <= 320, `the banner is from ${box.x} to ${box.x + box.width}`);
  t.forgive(page, /404/);
});

test("everything works without scripts", async (t) => {
  const page = await t.visitor({ javaScriptEnabled: false });
  await click(page);
  await page.getByText(/^As of \d\d:\d\d:\d\d UTC/).waitFor();
  await page.getByRole("button", { name: /\+ 1 h more/ }).click();
  await page.getByText("It has more time now.").waitFor();
  await page.getByText("End it now").click();
  await page.getByRole("button", { name: "Yes, delete it" }).click();
  await page.getByText("Your demo has ended").waitFor();
});

/** Presses Tab until that is where the focus is, and Enter. */
async function press(page, name) {
  for (let n = 0; n < 40; n += 1) {
    await page.keyboard.press("Tab");
    const text = await page.evaluate(() => document.activeElement?.textContent.trim().replace(/\s+/g, " ") ?? "");
    if (text.length < 60 && text.includes(name)) return page.keyboard.press("Enter");
  }
  assert.fail(`Tab does not lead to "${name}" on ${page.url()}`);
}

test("everything works with the keyboard alone", async (t) => {
  const page = await t.visitor();
  await page.goto(home);
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await press(page, "Start my demo");
  await page.waitForURL(/\/demo\//);
  await press(page, "+ 1 h more");
  await page.getByText("It has more time now.").waitFor();
  await press(page, "Reset to the original");
  await press(page, "Yes, reset it");
  await page.getByText("It is as it was at the start.").waitFor();
  await press(page, "End it now");
  await press(page, "Yes, delete it");
  await page.getByText("Your demo has ended").waitFor();
});

test("the landing page is small and is painted at once", async (t) => {
  const page = await t.visitor();
  const client = await page.context().newCDPSession(page);
  await client.send("Network.enable");
  let bytes = 0;
  client.on("Network.loadingFinished", ({ encodedDataLength }) => { bytes += encodedDataLength; });
  const outside = [];
  page.on("request", (request) => { if (new URL(request.url()).origin + "/" !== home) outside.push(request.url()); });
  await page.goto(home, { waitUntil: "networkidle" });
  const painted = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
  assert.ok(painted < 1000, `first paint after ${painted} ms`);
  assert.ok(bytes > 1000 && bytes < 60_000, `${bytes} bytes`);
  assert.deepEqual(outside, []);
});

test("another site shows the button in a frame, and its click opens the demo", async (t) => {
  const page = await t.visitor();
  await page.route("http://partner.localhost/", (route) => route.fulfill({
    contentType: "text/html",
    body: `<!doctype html><title>Partner</title><iframe src="${home}embed/button?golden=wordpress" width="320" height="150"></iframe>`,
  }));
  await page.goto("http://partner.localhost/");
  const button = page.frameLocator("iframe").getByRole("button", { name: "Open a demo" });
  const tab = await newTab(page, () => button.click());
  await tab.waitForURL(/\/demo\//);
});

test("at full capacity a visitor waits in line and gets in by itself, with no script at all", async (t) => {
  const taken = [];
  for (let n = 0; n < 2; n += 1) taken.push((await api("POST", "/api/v1/demo/acquire", { body: { ttl: "10m" } })).json().id);
  const first = await t.visitor({ javaScriptEnabled: false });
  await first.goto(home);
  await first.getByText("All taken: you get in line").waitFor();
  await first.getByRole("button", start).click();
  await first.getByRole("heading", { name: "You are in line" }).waitFor();
  await first.getByText("1 of 1").waitFor();
  const second = await t.visitor({ viewport: { width: 320, height: 640 }, locale: "fr-FR", colorScheme: "dark" });
  await second.goto(home);
  await second.getByRole("button", { name: "Démarrer ma démo" }).click();
  await second.getByText("2 sur 2").waitFor();
  await second.getByText(/\d+\smin au plus/).waitFor();
  assert.ok((await brightness(second)) < 0.2);
  await assertFits(second);
  await assertAccessible(second);
  assert.equal((await api("DELETE", `/api/v1/demo/${taken[0]}`)).status, 204);
  await first.waitForURL(/\/demo\//);
  await second.getByText("1 sur 1").waitFor();
  assert.equal((await api("DELETE", `/api/v1/demo/${taken[1]}`)).status, 204);
  await second.waitForURL(/\/demo\//);
}, { MAX_INSTANCES: "2", POOL_TARGET_SIZE: "0" });

test("an open page says so when its demo's time is over, and offers a new one", async (t) => {
  const page = await t.visitor();
  const id = await click(page);
  await page.getByRole("heading", { name: "This demo has ended" }).waitFor();
  await assertAccessible(page);
  await page.getByRole("link", { name: "Start a new demo" }).click();
  assert.equal(page.url(), home);
  await page.goto(`http://${id}.localhost:${PORT}/`);
  await page.getByRole("heading", { name: "This demo has ended" }).waitFor();
  t.forgive(page, /410|404|EventSource/);
}, { DEFAULT_TTL: "6s", MAX_TTL: "10s" });
