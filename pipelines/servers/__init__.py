"""The servers that a pipeline meets: Kubeflow Pipelines (``client``) and Kubernetes (``kube``)."""
