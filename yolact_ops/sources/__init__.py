"""Sources of raw data: parsing ``data.source``, fetching the data, and detecting changes."""
