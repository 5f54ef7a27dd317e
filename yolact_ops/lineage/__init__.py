"""What a result was made from: code, settings, data, libraries, machine; hashes, and redaction of credentials."""
