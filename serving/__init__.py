"""An HTTP server that detects objects with a registered model, and takes up a new champion without a pause.

`settings` says what can be set, `app` puts the parts together, `server` runs them. A request goes from a router
(`routes`) through `bodies` (reading within limits) and `images` (decoding) to `batching`, which runs the model that
`following` keeps current, and back through `results`.
"""
