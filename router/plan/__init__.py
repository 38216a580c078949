"""Capacity planning: upper bounds on what a fleet can do, and advice on which fleet to buy.

It reads workloads and specs, solves linear and integer programs (SciPy's HiGHS, the optional extra
`polyphase[plan]`), and checks its answers in virtual time with the real core and policies. It may not
influence routing: nothing below this room imports it.
"""
