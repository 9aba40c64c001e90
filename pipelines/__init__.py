"""Programs: configuration -> `build(pipeline, config)` -> launch."""
