"""One TOML file per device, and the loader."""
