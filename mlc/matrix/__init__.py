"""`mlc build`: the artifacts that mlc.toml asks for, models times targets.

What each module does::

    entries -- [build] of mlc.toml -> the artifacts to make, by name
    plan    -- what is up to date by content, what is to be built, and why
    gates   -- what an artifact must keep besides being right
    run     -- the compiles, several at a time, each in a process of its own
    report  -- report.json, from which the next build knows; JUnit's XML
"""
