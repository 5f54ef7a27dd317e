"""What became of a run: read from the servers, explained, shown, waited for."""
