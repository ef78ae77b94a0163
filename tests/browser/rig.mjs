// What all browser tests share: the service as a process, a browser, and claims about any page.
//
//   test("what holds", async (t) => { ... })   t.visitor() opens a page as somebody new
//
// Environment, set by tests/run: PROGRAM (the binary), ON_HOST (a command that runs it in the lab, or nothing), ADDRESS
// (where the service is reached), NODE_MODULES (playwright-core and axe-core), RECIPE_DIR, SNAPSHOT_DIR.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import http from "node:http";

const need = (name) => process.env[name] ?? assert.fail(`${name} is not set: use tests/run browser`);
const require = createRequire(need("NODE_MODULES") + "/");
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

export const PORT = Number(process.env.BROWSER_PORT ?? 18080);
export const address = need("ADDRESS");

/** How long anything may take: the machine may be busy. */
export const PATIENCE = 20_000;

/** Waits until `check` answers something true; fails with what it said last. */
export async function eventually(what, check, patience = PATIENCE) {
  const end = Date.now() + patience;
  let last;
  do {
    try {
      last = await check();
      if (last) return last;
    } catch (error) { last = error; }
    await new Promise((done) => setTimeout(done, 50));
  } while (Date.now() < end);
  assert.fail(`not within ${patience} ms: ${what}; last: ${last?.message ?? last}`);
}

/** One request to the service's own API, past the browser. */
export function api(method, path, { body, headers = {}, host = `localhost:${PORT}`, port = PORT } = {}) {
  return new Promise((done, fail) => {
    const request = http.request({ host: address, port, method, path, agent: false, timeout: 60_000,
      headers: { host, ...(body ? { "content-type": "application/json" } : {}), ...headers } }, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => {
        const text = Buffer.concat(parts).toString();
        done({ status: response.statusCode, headers: response.headers, text, json: () => JSON.parse(text) });
      });
    });
    request.on("timeout", () => request.destroy(new Error(`${method} ${path}: no answer`)));
    request.on("error", fail);
    request.end(body ? JSON.stringify(body) : undefined);
  });
}

/** The service with those settings, which takes all it made down when it is stopped. */
export class Service {
  static async start(settings = {}, port = PORT) {
    const service = new Service();
    service.port = port;
    const [program, ...args] = [...(process.env.ON_HOST ? [process.env.ON_HOST] : []), need("PROGRAM")];
    const base = {
      GOLDEN: "wordpress", LISTEN: `0.0.0.0:${port}`, PUBLIC_PORT: String(port), POOL_TARGET_SIZE: "1", MAX_INSTANCES: "8",
      SLOTS_AHEAD: "2", RATE_LIMIT_HOURLY: "0", RATE_LIMIT_DAILY: "0", BRIDGE_NAME: "dmbrowser", BRIDGE_SUBNET: "10.99.0.0/24",
      CGROUP_PARENT: "demo-multiplexer-browser", COLD_START: "refused", LOG_FORMAT: "text", BANNER: "on", ...settings };
    // As flags, which no runner between here and the service keeps to itself.
    const flags = Object.entries(base).map(([name, value]) => `--${name.toLowerCase().replaceAll("_", "-")}=${value}`);
    service.host = base.BASE_DOMAIN ?? "localhost";
    const child = spawn(program, [...args, ...flags, "serve", "--ephemeral"], { stdio: ["ignore", "pipe", "pipe"] });
    service.child = child;
    service.log = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (part) => { service.log += part; });
    // "close" and not "exit": through the lab's runner the service is a grandchild, and holds the pipes until it is gone.
    service.ended = new Promise((done) => child.on("close", done));
    let ended = false;
    service.ended.then(() => { ended = true; });
    try {
      await eventually("the service serves", async () => {
        if (ended) throw new Error(`it has ended: ${service.log.slice(-2000)}`);
        return (await api("GET", "/readyz", { host: service.host, port })).status === 200;
        // Its first start unpacks the snapshot.
      }, 180_000);
      if (Number(base.POOL_TARGET_SIZE) > 0) await service.hasReady();
    } catch (error) {
      await service.stop();
      error.message += `\nthe service said:\n${service.log.slice(-2000)}`;
      throw error;
    }
    return service;
  }

  /** Waits until the pool has one. */
  async hasReady() {
    await eventually("an instance is ready", async () => {
      return (await api("GET", "/", { host: this.host, port: this.port })).text.includes("Ready now");
    }, 60_000);
  }

  async stop() {
    this.child.kill("SIGTERM");
    const late = setTimeout(() => this.child.kill("SIGKILL"), 30_000);
    await this.ended;
    clearTimeout(late);
  }
}

/** A browser; the service may be in the lab, and names stay what they are. */
export async function openBrowser(names = `MAP localhost ${address}, MAP *.localhost ${address}`, more = []) {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", headless: true,
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync",
      // The page of another site that a test makes up comes from no address, and ours is on the local network.
      "--disable-features=LocalNetworkAccessChecks",
      `--host-resolver-rules=${names}`, ...more],
  });
}

export const home = `http://localhost:${PORT}/`;

/** A person with a browser of their own; every error on the console is held against the page at the end. */
export async function person(browser, options = {}) {
  const context = await browser.newContext({ locale: "en-GB", viewport: { width: 1100, height: 800 }, ...options });
  context.setDefaultTimeout(PATIENCE);
  context.problems = [];
  context.demos = new Set();
  const watch = (page) => {
    // A shop's own scripts are the shop's; our part in its pages is the banner.
    const note = (from, text) => {
      if (page.url().startsWith("http://localhost:") || from.includes("/.demo-multiplexer/")) context.problems.push(`${page.url()}: ${text}`);
    };
    page.on("console", (message) => {
      if (message.type() === "error") note(message.location()?.url ?? "", message.text());
    });
    page.on("pageerror", (error) => note(error.stack ?? "", error.message));
    page.on("framenavigated", (frame) => {
      const id = /\/demo\/([a-z2-7]{12})|\/\/([a-z2-7]{12})\./.exec(frame.url());
      if (id) context.demos.add(id[1] ?? id[2]);
    });
  };
  context.on("page", watch);
  return { context, page: await context.newPage() };
}

/** No finding of axe-core that is serious or worse. */
export async function assertAccessible(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const grave = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  const told = grave.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.html).slice(0, 3).join(" ")}`);
  assert.deepEqual(told, [], page.url());
}

/** Nothing sticks out at the side. */
export async function assertFits(page) {
  const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(content <= window, `${page.url()} is ${content} px wide in ${window} px`);
}

/** The page's ground in the mode asked for: dark when dark, light when light. */
export async function brightness(page) {
  const colour = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const [r, g, b] = colour.match(/\d+/g).map(Number);
  return (r * 299 + g * 587 + b * 114) / 255_000;
}

/** The one service that runs; a test names the settings that it wants. */
let running;
/** Has the service run with those settings: the one that runs, if it has them. */
export async function serve(settings = {}) {
  const wanted = JSON.stringify(settings);
  if (running?.settings === wanted) return running.service;
  await stopServing();
  running = { settings: wanted, service: await Service.start(settings) };
  return running.service;
}
export async function stopServing() {
  const was = running;
  running = undefined;
  await was?.service.stop();
}

const tests = [];
/** States a claim; run by run.mjs, in order. */
export function test(name, body) { tests.push({ name, body }); }

/** Runs what was stated; answers how many passed and failed. */
export async function runAll(filter) {
  const browser = await openBrowser();
  const attempt = async ({ name, body }) => {
    const began = Date.now();
    const contexts = [];
    const t = {
      browser,
      visitor: async (options) => {
        const someone = await person(browser, options);
        contexts.push(someone.context);
        return someone.page;
      },
      /** For a page whose error is the point. */
      forgive: (page, pattern) => {
        const context = page.context();
        context.problems = context.problems.filter((problem) => !pattern.test(problem));
      },
    };
    try {
      await body(t);
      assert.deepEqual(contexts.flatMap((context) => context.problems), [], "errors on the console");
      console.log(`ok     ${name} (${Date.now() - began} ms)`);
      return true;
    } catch (error) {
      console.log(`FAILED ${name}\n${error.stack}`);
      return false;
    } finally {
      const demos = new Set(contexts.flatMap((context) => [...context.demos]));
      for (const context of contexts) await context.close();
      // The next test finds the place free.
      for (const id of demos) await api("DELETE", `/api/v1/demo/${id}`).catch(() => {});
    }
  };
  const failed = [];
  const chosen = tests.filter(({ name }) => name.includes(filter));
  for (const test of chosen) if (!(await attempt(test))) failed.push(test);
  // As with the integration tests: what passes once more is unstable, a defect by itself, and named.
  const again = failed.length <= 3 ? failed.splice(0) : [];
  for (const test of again) {
    if (await attempt(test)) console.log(`unstable: ${test.name}`);
    else failed.push(test);
  }
  await browser.close();
  await stopServing();
  return { passed: chosen.length - failed.length, failed: failed.length };
}
