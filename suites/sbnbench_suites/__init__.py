"""The suites that ship with sbnbench, as TOML files."""
