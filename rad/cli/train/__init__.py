"""`rad train`: LightningCLI with one folder per run, its options, its messages and its errors.

Example:
    exit_code = fit(["--config", "rad_nature32.yaml", "--name", "mine"])            # rad.cli.train.run
"""
