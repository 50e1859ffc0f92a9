"""Client side of Attune: the public protocol, gRPC clients, and the `attune` command."""
