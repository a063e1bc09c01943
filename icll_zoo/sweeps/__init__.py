"""Many runs from one file: on this machine's processes, or on a Ray cluster.

sweeping       the verb: check everything, train what is missing, gather the table
descriptions   a file, or Python objects, into descriptions of runs
ledger         what happened, only ever added to, and the table of results
board          the live table
processes      the engine on this machine
cluster        the engine on Ray
worker         the process that trains runs, one after the other
"""
