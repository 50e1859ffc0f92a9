#!/usr/bin/env -S python3 -I -S
"""Whether the server in this container is ready, by its exit status; prints what /readyz says.

Imports the standard library only, and little of it: it is run every ten seconds. ATTUNE_HTTP_PORT is the port of health
where it is not 8000.
"""

import http.client
import os
import sys

_TIMEOUT_S = 4.0


def main() -> int:
    """Ask once; 0 if every model is served, else 1."""
    port = int(os.environ.get("ATTUNE_HTTP_PORT", "8000"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.read(1000).decode(errors="replace").strip())
        return int(answer.status != http.client.OK)
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
