-- wrk script: bodies, alone or with a tau and a prior; prints a line of JSON at the end.
--   wrk … -s load.lua URL -- FILE SETTINGS [HEADER VALUE]…
-- FILE: bodies one after the other, the length of each before it in eight digits.
-- SETTINGS: "" sets nothing; one:NAME the same tau and prior in each request; mixed:NAME,NAME… a tau and one of the priors drawn for each.
-- With settings there are as many different requests as bodies, of the same length either way.

local requests, count, at = {}, 0, 0

local function bodies_of(path)
  local file = assert(io.open(path, "rb"))
  local bodies = {}
  while true do
    local digits = file:read(8)
    if not digits then break end
    bodies[#bodies + 1] = file:read(tonumber(digits))
  end
  file:close()
  return bodies
end

function init(args)
  local bodies, settings, headers = bodies_of(args[1]), args[2], {}
  for i = 3, #args, 2 do headers[args[i]] = args[i + 1] end
  local mixed, priors = settings:sub(1, 6) == "mixed:", {}
  for name in settings:gsub("^%a+:", ""):gmatch("[^,]+") do priors[#priors + 1] = name end
  math.randomseed(1)
  count = #bodies
  for i = 1, count do
    local query = ""
    if #priors > 0 then
      local tau = mixed and 2 * math.random() or 1.0
      query = string.format("?tau=%.4f&prior=%s&top_k=5", tau, priors[math.random(#priors)])
    end
    requests[i] = wrk.format("POST", wrk.path .. query, headers, bodies[i])
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
