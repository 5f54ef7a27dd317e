"""Run steps as commands and Kubeflow tasks: read settings, log, report errors clearly."""
