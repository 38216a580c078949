"""What things cost. Run by hand (`make bench`), never as part of the tests: machines are shared and noisy."""
