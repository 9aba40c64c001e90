// Opens a report as its readers do, and prints what was seen as JSON: node visit.mjs PAGE [FOLDER for screenshots]
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [, , page_path, shots] = process.argv;
const address = pathToFileURL(page_path).href;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await puppeteer.launch({
  executablePath: await chromium.executablePath(),
  headless: "shell",
  args: ["--no-sandbox", "--no-zygote", "--disable-gpu", "--font-render-hinting=none"],
});
const page = await browser.newPage();
const seen = { errors: [], requests: [], looks: {} };
page.on("pageerror", (error) => seen.errors.push(error.message));
page.on("console", (message) => ["error", "warn"].includes(message.type()) && seen.errors.push(message.text()));
page.on("request", (request) => request.url() === address || request.url().startsWith("data:") || seen.requests.push(request.url()));

async function open(width, scheme) {
  await page.setViewport({ width, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(address);
}

// Wide, on a phone, in the dark: does anything overflow, and what does axe find?
for (const [name, width, scheme] of [["light", 1200, "light"], ["dark", 1200, "dark"], ["phone", 360, "light"]]) {
  await open(width, scheme);
  seen.looks[name] = await page.evaluate(() => ({
    width: document.documentElement.scrollWidth,
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    wider: [...document.querySelectorAll("body *")]
      .filter((each) => !each.closest(".hidden, .skip, svg") && each.getBoundingClientRect().right > innerWidth + 1)
      .map((each) => each.outerHTML.slice(0, 80)),
  }));
  await page.evaluate(axe);
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  seen.looks[name].axe = found.violations.map((each) => ({ id: each.id, impact: each.impact, where: each.nodes.slice(0, 3).map((node) => node.html) }));
  if (shots) {
    await page.screenshot({ path: `${shots}/report-${name}.png` });
    for (const part of ["points", "labels", "groups-part", "run"]) {
      await page.evaluate((id) => document.getElementById(id).scrollIntoView(), part);
      await page.screenshot({ path: `${shots}/report-${name}-${part}.png` });
    }
  }
}

// Search, filter and sort.
await open(1200, "light");
const visible = (selector) => page.$$eval(selector, (all) => all.filter((each) => each.checkVisibility()).map((each) => each.dataset.place ?? each.textContent));
seen.points = await visible(".point");
seen.gallery = (await visible(".suspect")).length;
if (seen.points.length) {
  const last = await page.$eval(".point:last-of-type h3", (head) => head.textContent.replace("Test point ", ""));
  await page.type("#search", last);
  seen.searched = { for: last, points: await visible(".point"), said: await page.$eval("#found", (each) => each.textContent) };
  await page.$eval("#search", (each) => { each.value = ""; each.dispatchEvent(new Event("input")); });
  await page.select("#show", "wrong");
  seen.wrong = await page.$$eval(".point", (all) => all.filter((each) => each.checkVisibility()).map((each) => each.dataset.right));
  await page.select("#show", "all");
  await page.select("#sort", "loss");
  seen.by_loss = await page.$$eval(".point", (all) => all.map((each) => each.dataset.loss));
  const heads = await page.$$("table.scores thead button");
  const column = () => page.$$eval("table.scores:first-of-type tbody", (bodies) => [...bodies[0].rows].map((row) => Number(row.cells[3].dataset.value)));
  const before = await column();
  await heads[3].click();
  const falling = await column();
  await heads[3].click();
  seen.sorted = { before, falling, rising: await column(), told: await page.$eval("table.scores thead th:nth-child(4)", (head) => head.getAttribute("aria-sort")) };
}

// By keyboard, on paper, and without script.
await open(1200, "light");
await page.keyboard.press("Tab");
seen.first_stop = await page.evaluate(() => document.activeElement.textContent);
await page.emulateMediaType("print");
seen.printed = { nav: (await visible("nav")).length, points: (await visible(".point")).length };
await page.emulateMediaType("screen");
await page.setJavaScriptEnabled(false);
await page.goto(address);
seen.without_script = { points: await page.$$eval(".point", (all) => all.length), controls: (await visible("#controls")).length };
await browser.close();
console.log(JSON.stringify(seen));
