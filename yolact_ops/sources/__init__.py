"""Sources of raw data: what ``data.source`` names, its version, and bringing it to this machine."""
