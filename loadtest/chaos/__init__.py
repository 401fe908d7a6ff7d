"""Break a running fleet, and see what its callers see: ``python -m loadtest.chaos``."""

import os

os.environ.setdefault(
    "GRPC_VERBOSITY", "ERROR"
)  # before gRPC is imported: it would tell of each process that is started
