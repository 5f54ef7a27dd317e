"""How steps become commands and Kubeflow tasks: settings in, log lines and clear errors out."""
