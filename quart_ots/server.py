"""Hypercorn's limits, set on purpose: ``hypercorn --config file:quart_ots/server.py 'quart_ots:create_app()'``.

Where the package is installed: ``python:quart_ots.server``; Hypercorn reads it before it looks in the working folder.
What stands on the command line wins. Hypercorn has no limit on connections: that is the process's on open files, see
docs/operations.md.
"""

# Seconds that a connection may be idle, and that a request's head may take to come whole.
keep_alive_timeout = 5
# Requests on one connection; then it is closed, so that clients spread over the processes anew.
keep_alive_max_requests = 1000
# Bytes of a request's head. A key takes 43, all that a client here needs to send some hundred.
h11_max_incomplete_size = 16_384
h2_max_header_list_size = 16_384
# Requests at once on one HTTP/2 connection. More would only wait for the key stretching.
h2_max_concurrent_streams = 100
# Connections that the kernel keeps in line while the event loop is busy.
backlog = 1024
# Seconds that requests in flight have to be answered after SIGTERM.
graceful_timeout = 7
# The answer says nothing of the software behind it.
include_server_header = False
