"""Other routers' rules, by their published formulas and defaults: what ours is measured against.

Each module names its source and says what is approximated. A rule sees what the original sees: its own
bookings, its own index of what was routed where, and the workers' reports; never a step model, unless the
original has one. Capacity is not filtered on, since the originals queue in the engine.
"""
