"""The router without I/O: facts and the present time go in, actions come out."""
