"""The reference worker. Everything here needs torch and is skipped without it."""
