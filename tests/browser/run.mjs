// Runs the browser tests: all *.test.mjs beside this file, or those whose names have a word in them:   run.mjs [WORD]
// The last line is "N passed, N failed".
import { readdirSync } from "node:fs";
import { runAll, stopServing } from "./rig.mjs";

const here = new URL("./", import.meta.url);
const ends = [];
for (const file of readdirSync(here).filter((name) => name.endsWith(".test.mjs")).sort()) {
  // A file that starts a service of its own says how it is ended.
  const { end } = await import(new URL(file, here));
  if (end) ends.push(end);
}
let sum = { passed: 0, failed: 1 };
try {
  sum = await runAll(process.argv[2] ?? "");
} catch (error) {
  console.log(`FAILED ${error.stack}`);
} finally {
  await stopServing();
  for (const end of ends) await end();
}
console.log(`${sum.passed} passed, ${sum.failed} failed`);
process.exit(sum.failed ? 1 : 0);
