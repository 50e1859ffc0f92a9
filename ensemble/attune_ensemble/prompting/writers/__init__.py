"""The prompt writers: their interface, one module each, and their registry."""
