-- Bodies from the file that SERVING_BODIES names, a line each, one after the other; figures as a line of JSON.
local bodies, at = {}, 0

function init(arguments)
  for line in io.lines(os.getenv("SERVING_BODIES")) do bodies[#bodies + 1] = wrk.format("POST", nil, nil, line) end
  math.randomseed(os.time())
  at = math.random(#bodies)
end

wrk.headers["content-type"] = "application/json"

function request()
  at = at % #bodies + 1
  return bodies[at]
end

function done(summary, latency, requests)
  local broken = summary.errors
  io.write(string.format(
    'FIGURES {"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    broken.status, broken.connect + broken.read + broken.write + broken.timeout))
end
