"""Devices at other addresses, by TVM's own RPC: its tracker, its servers, and what we add to them.

TVM's RPC has no password: whoever reaches a port may run code there. So everything here binds the
loopback address unless another is asked for, and an SSH tunnel is the way to other machines.

    serve     run TVM's tracker or server in this process, with its known faults mended
    tracker   ask a tracker: which servers are there, and give me one (needs no TVM)
    gpu       time candidates on this machine's GPU (needs no TVM)
    facts     what a server says of its machine, checked (needs no TVM)
    address   HOST:PORT and the key of a kind of device (needs no TVM)
"""
