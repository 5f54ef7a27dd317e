"""Names of the files of a saved model; no PyTorch is needed to know them."""

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"
"""Settings of the network and names of the classes."""
