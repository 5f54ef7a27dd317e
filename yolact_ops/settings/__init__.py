"""``params.yaml``: schema, YAML, presets and overrides. The library's own settings are in `yolact.settings`."""
