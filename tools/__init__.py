"""Programs that measured or made a committed file once; none of them sends telemetry."""

import os

from attune_client.protocol.privacy import NO_TELEMETRY

os.environ.update(NO_TELEMETRY)
