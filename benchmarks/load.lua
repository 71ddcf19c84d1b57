-- wrk script: one body, alone or with a tau and a prior; prints a line of JSON at the end.
--   wrk … -s load.lua URL -- BODY_FILE SETTINGS [HEADER VALUE]…
-- SETTINGS: "" sets nothing; one:NAME the same tau and prior in each request; mixed:NAME,NAME… a tau and one of the priors drawn for each.
-- Both kinds of requests that set something are as long as each other and as many.

local requests, count, at = {}, 0, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local body = file:read("*a")
  file:close()
  local headers = {}
  for i = 3, #args, 2 do headers[args[i]] = args[i + 1] end
  if args[2] == "" then
    requests[1], count = wrk.format("POST", nil, headers, body), 1
    return
  end
  local mixed = args[2]:sub(1, 6) == "mixed:"
  local priors = {}
  for name in args[2]:gsub("^%a+:", ""):gmatch("[^,]+") do priors[#priors + 1] = name end
  math.randomseed(1)
  count = 20000
  for i = 1, count do
    local tau = mixed and 2 * math.random() or 1.0
    local query = string.format("?tau=%.4f&prior=%s&top_k=5", tau, priors[math.random(#priors)])
    requests[i] = wrk.format("POST", wrk.path .. query, headers, body)
  end
end

function request()
  at = at % count + 1
  return requests[at]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'JSON {"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p90_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f, "refused": %d, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
