// What an operator sees and does, on a real golden; beside the visitors' service, with a token of its own.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { PORT, Service, api, assertAccessible, assertFits, brightness, eventually, test } from "./rig.mjs";

const port = PORT + 1;
const at = `http://localhost:${port}`;
const token = `dmx_${randomBytes(32).toString("hex")}`;
const entry = `ops:operate+acquire:${createHash("sha256").update(token).digest("hex")}`;
const authorization = { authorization: `Bearer ${token}` };

/** Its own things lie beside the visitors' service's, whose snapshot and key they are. */
const theirs = process.env.STATE_DIR ?? "/var/lib/demo-multiplexer";
const place = {
  STATE_DIR: `${theirs}/console`,
  TRUSTED_SNAPSHOT_KEYS: process.env.TRUSTED_SNAPSHOT_KEYS ?? `${theirs}/keys/snapshot.pub`,
  ...(process.env.SNAPSHOT_DIR ? { SNAPSHOT_DIR: process.env.SNAPSHOT_DIR } : {}),
  ...(process.env.RECIPE_DIR ? { RECIPE_DIR: process.env.RECIPE_DIR } : {}),
};

let service;
/** The service, started by the first who needs it; what it restores is unpacked then, which takes a while. */
async function serving() {
  service ??= Service.start({
    LISTEN: `0.0.0.0:${port}`, PUBLIC_PORT: String(port), API_TOKENS: entry, BRIDGE_NAME: "dmconsole",
    BRIDGE_SUBNET: "10.98.0.0/24", CGROUP_PARENT: "demo-multiplexer-console", ...place,
  }, port);
  await service;
  await eventually("it has one ready", async () => {
    const stats = await api("GET", "/api/v1/pool/stats", { headers: authorization, host: `localhost:${port}`, port });
    return stats.json().goldens[0].states.ready > 0;
  }, 120_000);
}
// One that did not come up has told so.
export const end = async () => (await service?.catch(() => undefined))?.stop();

const ask = async (method, path, body) => {
  const answer = await api(method, path, { body, headers: authorization, host: `localhost:${port}`, port });
  assert.ok(answer.status < 300, `${method} ${path}: ${answer.status} ${answer.text}`);
  return answer.text ? answer.json() : undefined;
};
const acquire = async () => (await ask("POST", "/api/v1/demo/acquire", {})).id;

/** An operator who has signed in. */
async function operator(t, options) {
  await serving();
  const page = await t.visitor(options);
  page.on("dialog", (dialog) => dialog.accept());
  await page.goto(`${at}/admin`);
  await page.locator("#token").fill(token);
  await page.locator("main button").click();
  await page.waitForURL(`${at}/admin`);
  return page;
}

/** Marks this document, to see later that it is still the same one. */
const mark = (page) => page.evaluate(() => { window.isSame = true; });
const isSame = (page) => page.evaluate(() => window.isSame === true);
const gauge = (page, id) => page.locator(`#gauge-${id} b`).textContent();

test("a wrong token is refused, a right one opens the console, signing out closes it", async (t) => {
  await serving();
  const page = await t.visitor();
  await page.goto(`${at}/admin/instances`);
  assert.equal(page.url(), `${at}/admin/sign-in`);
  await assertAccessible(page);
  await page.getByLabel("API token").fill("dmx_wrong");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("alert").waitFor();
  t.forgive(page, /403/);
  await page.getByLabel("API token").fill(token);
  await page.keyboard.press("Enter");
  await page.getByText("Signed in as ops").waitFor();
  const [cookie] = await page.context().cookies();
  assert.ok(cookie.httpOnly && cookie.sameSite === "Strict" && !cookie.value.includes(token));
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.goto(`${at}/admin`);
  assert.equal(page.url(), `${at}/admin/sign-in`);
});

test("what happens is shown without reading the page again", async (t) => {
  const page = await operator(t);
  await page.getByText("Live", { exact: true }).waitFor();
  await mark(page);
  const before = Number(await gauge(page, "assigned"));
  const id = await acquire();
  await eventually("the gauge has it", async () => Number(await gauge(page, "assigned")) === before + 1);
  await page.locator("#live-events").getByText(id).first().waitFor();
  await page.locator("#chart-latency .plot .line").first().waitFor({ state: "attached" });
  await ask("DELETE", `/api/v1/demo/${id}`);
  await eventually("it is gone", async () => Number(await gauge(page, "assigned")) === before);
  assert.ok(await isSame(page), "the same document");
});

test("an instance is found, extended, looked into and released", async (t) => {
  await serving();
  const id = await acquire();
  const page = await operator(t, { permissions: ["clipboard-read", "clipboard-write"] });
  await page.getByRole("link", { name: "Instances" }).click();
  await page.getByRole("searchbox").fill("nothing-is-named-so");
  await page.keyboard.press("Enter");
  await page.getByText("No instance is like that.").waitFor();
  await page.getByRole("searchbox").fill(id);
  await page.getByLabel("State").selectOption("assigned");
  await page.getByRole("button", { name: "Search" }).click();
  await page.getByText("1 of 1 shown").waitFor();
  const end = async () => new Date((await ask("GET", `/api/v1/demo/${id}`)).expires_at).getTime();
  const before = await end();
  await page.locator(`#extend-${id}`).click();
  await page.getByText("The instance has more time.").waitFor();
  assert.equal(await end() - before, 30 * 60_000);
  assert.ok(page.url().includes(`q=${id}`), "the search is kept");

  await page.getByRole("link", { name: id, exact: true }).click();
  await page.locator("#live-logs pre").first().waitFor();
  await page.getByRole("button", { name: "Copy" }).click();
  await page.getByText("Copied").waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), `demo-multiplexer exec ${id} -- sh`);
  await assertAccessible(page);
  const [office] = await Promise.all([page.context().waitForEvent("page"), page.locator(`#login-${id}`).click()]);
  await office.locator("#wpadminbar").waitFor();
  await office.close();
  // WordPress asks for a picture from elsewhere.
  t.forgive(page, /wp-admin/);
  await page.locator(`#release-${id}`).click();
  await page.getByText("The instance is released.").waitFor();
  await eventually("it is gone", async () => (await ask("GET", `/api/v1/demo?q=${id}&state=assigned`)).total === 0);
});

test("a shop is put to sleep, found asleep, woken and made anew", async (t) => {
  await serving();
  const id = await acquire();
  const page = await operator(t);
  await page.goto(`${at}/admin/instances/${id}`);
  await page.locator(`#sleep-${id}`).click();
  await page.getByText("The instance sleeps").waitFor();
  await page.getByText("hibernated", { exact: true }).waitFor();
  await assertAccessible(page);
  await page.goto(`${at}/admin/instances?q=${id}&state=hibernated`);
  await page.getByText("1 of 1 shown").waitFor();
  await mark(page);
  const visited = await api("GET", "/", { host: `${id}.localhost:${port}`, port });
  assert.ok(visited.status === 200 && visited.text.includes("A mug that keeps its promise"), visited.text);
  await page.getByText("No instance is like that.").waitFor();
  assert.ok(await isSame(page), "the open page was told that it is awake");
  await page.goto(`${at}/admin/instances?q=${id}`);
  await page.locator(`#sleep-${id}`).click();
  await page.locator(`#wake-${id}`).click();
  await page.getByText("The instance is awake.").waitFor();
  const before = (await ask("GET", `/api/v1/demo/${id}`)).expires_at;
  await page.locator(`#sleep-${id}`).click();
  await page.locator(`#reset-${id}`).click();
  await page.getByText("The instance is as its golden again.").waitFor();
  await page.locator(`#sleep-${id}`).waitFor();
  const { state, expires_at: after } = await ask("GET", `/api/v1/demo/${id}`);
  assert.deepEqual([state, after], ["assigned", before]);
  await ask("DELETE", `/api/v1/demo/${id}`);
});

test("the target is changed and the pool follows on the open page", async (t) => {
  const page = await operator(t);
  await page.getByLabel("Target of wordpress", { exact: true }).fill("2");
  await page.keyboard.press("Enter");
  await page.getByText("The target is changed.").waitFor();
  await mark(page);
  await eventually("two are ready", async () => (await gauge(page, "ready")) === "2");
  assert.ok(await isSame(page));
  await page.getByLabel("Target of wordpress", { exact: true }).fill("1");
  await page.getByRole("button", { name: /^Set: / }).click();
  await eventually("one is ready", async () => (await gauge(page, "ready")) === "1");
});

test("a drained pool hands out nothing until it is filled again", async (t) => {
  const page = await operator(t);
  await page.getByRole("button", { name: "Drain" }).click();
  await page.getByText("The pool is drained: nothing is handed out").waitFor();
  await assertAccessible(page);
  const acquire = { headers: authorization, host: `localhost:${port}`, port, body: {} };
  assert.equal((await api("POST", "/api/v1/demo/acquire", acquire)).status, 503);
  await page.getByRole("button", { name: "Fill again" }).click();
  await page.getByText("The pool is filled again.").waitFor();
  assert.equal((await api("GET", "/readyz", { host: `localhost:${port}`, port })).status, 200);
});

test("a snapshot is verified, and the page tells how far it is", async (t) => {
  const page = await operator(t);
  await page.getByRole("link", { name: "Snapshots" }).click();
  await page.getByText("Served", { exact: true }).waitFor();
  await page.getByRole("button", { name: /^Verify / }).first().click();
  await page.getByText("The task has begun.").waitFor();
  await mark(page);
  await page.locator("#live-tasks").getByText("whole").waitFor();
  assert.ok(await isSame(page), "it was told by itself");
});

test("every page is accessible, narrow, dark and French", async (t) => {
  await serving();
  const id = await acquire();
  const sections = ["", "/instances", "/snapshots", "/limits", "/events", `/instances/${id}`, "/instances/aaaaaaaaaaaa"];
  const pages = sections.map((path) => `${at}/admin${path}`);
  const light = await operator(t);
  for (const url of pages) {
    await light.goto(url);
    await assertAccessible(light);
    assert.ok((await brightness(light)) > 0.5, url);
  }
  const options = { colorScheme: "dark", locale: "fr-FR", viewport: { width: 320, height: 700 } };
  const [stranger, other] = [await t.visitor(options), await operator(t, options)];
  for (const [page, url] of [[stranger, `${at}/admin/sign-in`], ...pages.map((url) => [other, url])]) {
    await page.goto(url);
    assert.equal(await page.locator("html").getAttribute("lang"), "fr");
    await assertFits(page);
    await assertAccessible(page);
    assert.ok((await brightness(page)) < 0.3, url);
  }
  for (const page of [light, other]) t.forgive(page, /404/);
});

test("without a script every page can be read and every form sent", async (t) => {
  const page = await operator(t, { javaScriptEnabled: false });
  assert.match(await gauge(page, "ready"), /^\d+$/);
  await page.locator("#chart-pool svg[role=img]").waitFor();
  await page.getByRole("link", { name: "Events", exact: true }).click();
  await page.locator("#live-events table").waitFor();
  await page.getByRole("link", { name: "Overview" }).click();
  await page.getByRole("button", { name: "Drain" }).click();
  await page.getByText("The pool is drained.", { exact: true }).waitFor();
  await page.getByRole("button", { name: "Fill again" }).click();
  await page.getByText("The pool is filled again.").waitFor();
});

test("the keyboard alone suffices to release an instance", async (t) => {
  await serving();
  const id = await acquire();
  const page = await operator(t);
  await page.goto(`${at}/admin/instances?q=${id}`);
  await page.locator(`#release-${id}`).focus();
  await page.keyboard.press("Enter");
  await page.getByText("The instance is released.").waitFor();
});
