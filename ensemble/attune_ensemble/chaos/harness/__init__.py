"""What all rows of `attune chaos` share: a server to test, calls that are judged, and the look at processes."""
