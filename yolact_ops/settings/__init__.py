"""``params.yaml``: its schema, its YAML, presets and overrides. The library's own settings: `yolact.settings`."""
