"""Programs that produced a committed file or measurement once, or compare one program with another.

None of them sends telemetry.
"""

import os

from attune_client.protocol.privacy import NO_TELEMETRY

os.environ.update(NO_TELEMETRY)
