"""Music engines behind one interface, and the specification that they play."""
