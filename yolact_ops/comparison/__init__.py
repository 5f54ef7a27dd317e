"""Comparing two runs or folders by what their evaluations stored: settings, metrics, classes, images."""
