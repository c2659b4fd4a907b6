-- wrk's requests, from a file of them: a line each, with method, path and body apart by tabs. Each is sent once, in
-- order, and then it ends; but a lone one is sent over and over. What comes back is counted by status and, where a second
-- file is named, written there, a body a line. Prints one line of JSON.
local threads = {}

function setup(thread)
    table.insert(threads, thread)
end

function init(args)
    requests, number, counts, statuses = {}, 0, {}, ""
    for line in io.lines(args[1]) do
        local method, path, body = line:match("^([^\t]*)\t([^\t]*)\t(.*)$")
        local headers = body ~= "" and { ["Content-Type"] = "application/json" } or {}
        table.insert(requests, wrk.format(method, path, headers, body ~= "" and body or nil))
    end
    if args[2] then
        answers = io.open(args[2], "w")
        answers:setvbuf("no")
    end
end

function request()
    number = number + 1
    if number > #requests then
        if #requests > 1 then
            wrk.thread:stop()
        end
        number = 1
    end
    return requests[number]
end

function response(status, _, body)
    counts[status] = (counts[status] or 0) + 1
    local parts = {}
    for code, times in pairs(counts) do
        table.insert(parts, string.format('"%d": %d', code, times))
    end
    statuses = table.concat(parts, ", ")
    if answers then
        answers:write(body, "\n")
    end
end

function done(summary)
    local errors = summary.errors
    io.write(string.format(
        '\n{"seconds": %f, "requests": %d, "lost": %d, "statuses": {%s}}\n', summary.duration / 1e6, summary.requests,
        errors.connect + errors.read + errors.write + errors.timeout, threads[1]:get("statuses")
    ))
end
