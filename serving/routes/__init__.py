"""The server's addresses: prediction, the model, health, and the Open Inference Protocol."""
