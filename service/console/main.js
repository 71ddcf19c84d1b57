// The console's frame: chooses the page, the model, the key, and light or dark.

import { html, render, useEffect, useState } from "./vendor/preact.js";
import { getJson } from "./api.js";
import { Model } from "./model.js";
import { Priors } from "./priors.js";
import { Shift } from "./shift.js";
import { Traffic } from "./traffic.js";
import { Try } from "./try.js";
import { Who, useWhoAmI } from "./who.js";
import { Empty, Failed, Loading, useLoaded } from "./widgets.js";

const PAGES = { try: ["Try", Try], priors: ["Priors", Priors], traffic: ["Traffic", Traffic], shift: ["Shift", Shift], model: ["Model", Model] };
const THEME = "priordial-theme";

/** #/page?model=NAME&… as {page, query}. */
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { page: path in PAGES ? path : "try", query: new URLSearchParams(query) };
}

function address(page, model, more = {}) {
  const query = new URLSearchParams({ ...(model ? { model } : {}), ...more });
  return `#/${page}${query.size ? `?${query}` : ""}`;
}

function useTheme() {
  const [theme, setTheme] = useState(() => localStorage.getItem(THEME) || "auto");
  useEffect(() => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    localStorage.setItem(THEME, theme);
  }, [theme]);
  return [theme, () => setTheme({ auto: "light", light: "dark", dark: "auto" }[theme])];
}

function App() {
  const [here, setHere] = useState(place);
  const [theme, nextTheme] = useTheme();
  const me = useWhoAmI();
  const [signedOut, setSignedOut] = useState(0);
  const models = useLoaded((signal) => getJson("models", { signal }), []);
  useEffect(() => {
    const moved = () => setHere(place());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const resting = (models.value?.on_demand ?? []).map((name) => ({ name })); // opening one's page loads it
  const known = [...(models.value?.models ?? []), ...resting];
  const wanted = here.query.get("model");
  const missing = wanted && models.value && !known.some((m) => m.name === wanted); // never another model in its place
  const model = missing ? undefined : wanted ?? models.value?.default ?? known[0]?.name;
  const [title, Page] = PAGES[here.page];
  const go = (more) => { location.hash = address(here.page, model, more); };
  go.to = (more) => address(here.page, model, more);
  useEffect(() => { document.title = `${title} · ${model ? `${model} · ` : ""}Priordial`; }, [title, model]);
  return html`
    <a class="skip" href="#main" onClick=${(e) => { e.preventDefault(); document.getElementById("main").focus(); }}>Skip to the page</a>
    <header>
      <a class="brand" href=${address("try", model)}><img src="console/icon.svg" alt="" />Priordial</a>
      <nav aria-label="Pages">${Object.entries(PAGES).map(
        ([page, [name]]) => html`<a href=${address(page, model)} aria-current=${page === here.page ? "page" : undefined}>${name}</a>`,
      )}</nav>
      ${known.length > 0 &&
      html`<label class="pick"><span class="sr">Model</span>
        <select value=${model ?? ""} onChange=${(e) => { location.hash = address(here.page, e.target.value); }}>
          ${missing && html`<option value="" disabled selected>choose a model</option>`}
          ${known.map((m) => html`<option value=${m.name} selected=${m.name === model}>${m.name}</option>`)}
        </select></label>`}
      <${Who} me=${me} signedOut=${() => setSignedOut((n) => n + 1)} />
      <a class="docs" href="docs">API</a>
      <button class="small theme" onClick=${nextTheme} aria-label=${`Colours: ${theme}. Change`}>${{ auto: "◐", light: "☀", dark: "☾" }[theme]}<span class="word"> ${theme}</span></button>
    </header>
    <main id="main" tabindex="-1">
      ${models.error ? html`<${Failed} error=${models.error} again=${models.again} />`
      : !models.value ? html`<${Loading} what="the models" />`
      : missing ? html`<${Missing} name=${wanted} known=${known} faults=${models.value.faults} here=${here} again=${models.again} />`
      : !model ? html`<${Empty} title="No model is served">
          <p>Train one with <code>priordial train fit …</code>, or import one with <code>priordial import …</code>. Then send <code>POST /v2/repository/models/NAME/load</code>, or send the service SIGHUP, to load it. To look at a service with models first, run <code>priordial demo</code>.</p></${Empty}>`
      : html`<${Page} key=${signedOut} model=${model} query=${here.query} go=${go} me=${me.value} />`}
    </main>`;
}

/** A link may name a model that is not served; the page then shows no other in its place. */
function Missing({ name, known, faults, here, again }) {
  const why = faults.filter((f) => f.model === name);
  return html`<${Empty} title=${`No model ${name} is served`}>
    ${why.map((f) => html`<p class="note" role="alert">Version ${f.version} is not served: ${f.reason}</p>`)}
    ${known.length > 0 && html`<p>The service has ${known.map((m, i) => html`${i ? ", " : ""}<a href=${address(here.page, m.name)}>${m.name}</a>`)}.</p>`}
    <p>If <b>${name}</b> is in the folder of models, <code>POST /v2/repository/models/${name}/load</code> loads it.</p><p><button onClick=${again}>Look again</button></p></${Empty}>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
