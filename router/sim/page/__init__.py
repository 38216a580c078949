"""A simulation as one self-contained HTML page: inline SVG, no network, no scripts."""
