"""`rad sample`: options, plan, batches in one or several processes, and the record of the run.

Example:
    options = read_options(["--checkpoint", "rad-nature32", "--image", "in", "--mask", "box", "--output", "out"])
    exit_code = run(options)            # rad.cli.sample.options, rad.cli.sample.run
"""
