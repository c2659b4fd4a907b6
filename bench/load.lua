-- wrk's requests for a time, from a file of them: a line each, with method, path and body apart by tabs. Each is sent
-- once, in order; but a lone one is sent over and over. When the time is over or all are sent, it waits for the answers
-- that are still to come, so that whoever measures CPU time knows what it was spent on, and ends. What comes back is
-- counted by status and, where a second file is named, written there, a body a line. Prints one line of JSON, or what was
-- lost.
--
-- Arguments: seconds, the file of requests, the file for answers.
local ffi = require("ffi")
ffi.cdef("typedef struct { long seconds, nanoseconds; } instant; int clock_gettime(int clock, instant *now);")
local MONOTONIC, NEVER = 1, 3600 * 1000

function now()
    local instant = ffi.new("instant")
    ffi.C.clock_gettime(MONOTONIC, instant)
    return tonumber(instant.seconds) + tonumber(instant.nanoseconds) / 1e9
end

function init(args)
    requests, counts = {}, {}
    sent, answered, in_time, last = 0, 0, 0, 0
    seconds = tonumber(args[1])
    for line in io.lines(args[2]) do
        local method, path, body = line:match("^([^\t]*)\t([^\t]*)\t(.*)$")
        local headers = body ~= "" and { ["Content-Type"] = "application/json" } or {}
        table.insert(requests, wrk.format(method, path, headers, body ~= "" and body or nil))
    end
    if args[3] then
        answers = io.open(args[3], "w")
        answers:setvbuf("no")
    end
end

function over()
    return now() - began > seconds or #requests > 1 and sent >= #requests
end

-- Asked before each request.
function delay()
    began = began or now()
    return over() and NEVER or 0
end

function request()
    -- wrk asks for one before it begins, to see what it is.
    sent = sent + (began and 1 or 0)
    return requests[math.max(0, sent - 1) % #requests + 1]
end

function response(status, _, body)
    answered = answered + 1
    local passed = now() - began
    if passed <= seconds then
        in_time, last = answered, passed
    end
    counts[status] = (counts[status] or 0) + 1
    if answers then
        answers:write(body, "\n")
    end
    if answered == sent and over() then
        local statuses = {}
        for code, times in pairs(counts) do
            table.insert(statuses, string.format('"%d": %d', code, times))
        end
        io.write(string.format(
            '{"seconds": %f, "in_time": %d, "requests": %d, "statuses": {%s}}\n', last, in_time, answered,
            table.concat(statuses, ", ")
        ))
        os.exit(0) -- wrk itself would wait for its whole duration
    end
end

function done(summary)
    local errors = summary.errors
    io.write(string.format(
        "lost: %d connections, %d writes, %d reads, %d answers late", errors.connect, errors.write, errors.read,
        errors.timeout
    ))
    os.exit(1)
end
