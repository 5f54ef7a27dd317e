"""Compare two runs or folders by their stored evaluations: settings, metrics, classes, images."""
