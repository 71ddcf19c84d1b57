// The API page: Swagger UI with the console's API key and colours.

import { key } from "./api.js";

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Set light or dark as in the console. Swagger UI uses its own class for the dark scheme. */
function paint() {
  const theme = localStorage.getItem("priordial-theme") ?? "auto";
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  document.documentElement.classList.toggle("dark-mode", theme === "dark" || (theme === "auto" && dark.matches));
}

paint();
dark.addEventListener("change", paint);
globalThis.SwaggerUIBundle({
  url: "openapi.json",
  domNode: document.getElementById("api"),
  layout: "BaseLayout",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
  requestInterceptor: (request) => {
    const named = Object.keys(request.headers ?? {}).some((name) => ["authorization", "x-api-key"].includes(name.toLowerCase()));
    if (key.get() && !named) request.headers["X-API-Key"] = key.get();
    return request;
  },
});
