"""Tests of the pure hardware models: times are worked by hand, nothing sleeps."""
